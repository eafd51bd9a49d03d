"""Serves moto's emulated AWS with one region more: serve.py HOST PORT REGION."""
import functools
import re
import sys
import threading

from moto.core.responses import ActionResult
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.responses import DynamoHandler
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend, Zone
from moto.ec2.responses import EC2Response
from moto.events.models import Rule
from moto.events.utils import EventTemplateParser
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

# DynamoDB takes a table's ARN in place of its name. moto takes only names.
TABLE = re.compile(r"arn:aws:dynamodb:[^:]+:[0-9]+:table/([^/]+)")


def named(value):
    if isinstance(value, dict):
        return {named(k): named(v) for k, v in value.items()}
    if isinstance(value, list):
        return [named(v) for v in value]
    arn = TABLE.fullmatch(value) if isinstance(value, str) else None
    return arn.group(1) if arn else value


call_action = DynamoHandler.call_action


def call_by_name(self):
    self.params = named(self.params)
    return call_action(self)


DynamoHandler.call_action = call_by_name

# A rule with a schedule and no pattern gets no events. moto sends it all of them.
send_to_targets = Rule.send_to_targets


def send_if_asked(self, *args, **kwargs):
    if self.scheduled_expression is None:
        send_to_targets(self, *args, **kwargs)


Rule.send_to_targets = send_if_asked

# moto leaves the account out of the events that a rule passes on.
EventTemplateParser.DEFAULT_EVENT_INPUT_TEMPLATE = EventTemplateParser.DEFAULT_EVENT_INPUT_TEMPLATE.replace(
    '"region"', '"account": "<account>", "region"'
)

# moto does not know this action. Every image is of the instance's account.
def describe_instance_image_metadata(self):
    return ActionResult({
        "InstanceImageMetadata": [
            {
                "InstanceId": instance.id,
                "OwnerId": self.current_account,
                "ImageMetadata": {"ImageId": instance.image_id, "OwnerId": self.current_account},
            }
            for instance in map(self.ec2_backend.get_instance, self._get_param("InstanceIds", []))
        ]
    })


EC2Response.describe_instance_image_metadata = describe_instance_image_metadata
main(["--host", host, "--port", port])
