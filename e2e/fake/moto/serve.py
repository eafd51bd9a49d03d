"""Serves moto's emulated AWS with one region more: serve.py HOST PORT REGION."""
import functools
import sys
import threading

from moto.dynamodb.models import DynamoDBBackend
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend, Zone
from moto.server import main

host, port, region = sys.argv[1:]
RegionsAndZonesBackend.zones[region] = [
    Zone(name=f"{region}{letter}", region_name=region, zone_id=f"test-az{number}")
    for number, letter in enumerate("ab", start=1)
]

# The server has many threads, and moto no lock: without one, two writers both find
# that their condition holds, and a transaction that fails undoes what others wrote.
turn = threading.RLock()


def alone(method):
    @functools.wraps(method)
    def locked(*args, **kwargs):
        with turn:
            return method(*args, **kwargs)

    return locked


for name in ("get_item", "put_item", "update_item", "delete_item", "transact_write_items"):
    setattr(DynamoDBBackend, name, alone(getattr(DynamoDBBackend, name)))
main(["--host", host, "--port", port])
