# Expands a SAM template as CloudFormation does, with AWS's own translator, and prints
# the result as JSON: expand.py [PARAMETERS] <TEMPLATE; PARAMETERS are a JSON object. It
# calls nobody. Exit status 3 means that something is missing.
import json
import sys

try:
    import boto3
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator
    from samtranslator.yaml_helper import yaml_parse
except ImportError as missing:
    print(missing, file=sys.stderr)
    sys.exit(3)

template = yaml_parse(sys.stdin.buffer.read().decode("utf-8"))
parameters = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
# As `sam package` leaves it.
for resource in template["Resources"].values():
    if resource["Type"] == "AWS::Serverless::Function":
        resource["Properties"]["CodeUri"] = {"Bucket": "artifacts", "Key": "bootstrap.zip"}
session = boto3.session.Session(region_name="us-west-2")
translator = Translator({}, Parser(), boto_session=session)
expanded = translator.translate(template, parameter_values=parameters)
json.dump(expanded, sys.stdout, indent=1, sort_keys=True)
print()
