"""Reads Avro as Confluent's clients write it, by fastavro alone: the schema comes from the registry, by the message's number.

    python avro.py REGISTRY_URL AUTHORIZATION < messages

A line of standard input is one message in hexadecimal, a line of standard output what it says, as JSON: bytes are base64, and
floating-point numbers that JSON has no word for are text. What is not a whole message, and no more, ends it.
"""

import base64
import io
import json
import math
import sys
import urllib.request

import fastavro
import fastavro.read

# Bytes stay bytes and numbers numbers: what they stand for is said by Connect's names, which only Connect reads.
fastavro.read.LOGICAL_READERS.clear()


def plain(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def main():
    registry, schemas = sys.argv[1].rstrip("/"), {}
    for line in sys.stdin:
        message = bytes.fromhex(line)
        if message[0] != 0:
            sys.exit(f"a message begins with {message[0]} and not 0")
        number = int.from_bytes(message[1:5], "big")
        if number not in schemas:
            asked = urllib.request.Request(f"{registry}/schemas/ids/{number}", headers={"Authorization": sys.argv[2]})
            with urllib.request.urlopen(asked) as answer:
                schemas[number] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
        datum = io.BytesIO(message[5:])
        value = fastavro.schemaless_reader(datum, schemas[number])
        if datum.read():
            sys.exit(f"bytes are left behind the datum of schema {number}")
        print(json.dumps(plain(value)))


main()
