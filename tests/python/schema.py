"""schema.py SCHEMA: judges JSON values by a JSON Schema (the PyPI package jsonschema).

Reads one JSON value from each line of stdin and prints `true` or `false` for each. Exits with 1 if the schema
itself is invalid.
"""

import json
import sys

import jsonschema

with open(sys.argv[1], encoding="utf-8") as file:
    schema = json.load(file)
validator = jsonschema.validators.validator_for(schema)
validator.check_schema(schema)
judge = validator(schema, format_checker=validator.FORMAT_CHECKER)
for line in sys.stdin:
    print("true" if judge.is_valid(json.loads(line)) else "false")
