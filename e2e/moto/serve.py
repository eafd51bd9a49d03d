"""Serves moto's emulated AWS with one region more: serve.py HOST PORT REGION."""
import sys

from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend, Zone
from moto.server import main

host, port, region = sys.argv[1:]
RegionsAndZonesBackend.zones[region] = [
    Zone(name=f"{region}{letter}", region_name=region, zone_id=f"test-az{number}")
    for number, letter in enumerate("ab", start=1)
]
main(["--host", host, "--port", port])
