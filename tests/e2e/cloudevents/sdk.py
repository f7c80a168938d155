"""What programs do with the CloudEvents SDK for Python.

    sdk.py send URL          posts events in each mode, and prints what each is, a line each
    sdk.py to-kafka          prints records of Kafka that the SDK makes of events, a line each
    sdk.py from-kafka        reads such lines, and prints what the SDK makes of each: attributes and data

A record is {"key", "value", "headers": {…}}, bytes as base64. An event is {"attributes": {…}, "data"}, its data as base64.
"""

import base64
import json
import sys
from datetime import datetime, timezone
from http.client import HTTPConnection
from urllib.parse import urlsplit

from cloudevents.core.bindings import http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

TIME = datetime(2026, 11, 23, 8, 0, 0, 123000, timezone.utc)
FURTHER = {"subject": "Größe 100% \"€\"", "shop": "7", "dataschema": "https://example.com/schema"}
# Content type, further attributes, data as a program gives it, its bytes in a binary message, and in an envelope.
EVENTS = {
    "json": ("application/json", FURTHER, {"n": 1, "ü": [None]}, b'{"n": 1, "\\u00fc": [null]}', None),
    "none": (None, {"partitionkey": "p"}, None, b"", None),
    "text": ("text/plain", {}, "Grüße\n", "Grüße\n".encode(), None),
    "bytes": ("application/octet-stream", {}, b"\xff\x00", b"\xff\x00", None),
    "string": ("application/json", {}, "no JSON", b"no JSON", b'"no JSON"'),
}


def events(mode):
    for name, (content_type, further, data, *as_bytes) in EVENTS.items():
        attributes = {"id": f"{mode}-{name}", "source": "/python", "type": f"python.{mode}", "time": TIME, **further}
        if content_type:
            attributes["datacontenttype"] = content_type
        expected = {**attributes, "specversion": "1.0", "time": "2026-11-23T08:00:00.123000Z"}
        binary, enveloped = as_bytes
        as_bytes = binary if mode == "binary" or enveloped is None else enveloped
        yield CloudEvent(attributes, data), {"attributes": expected, "data": encode(as_bytes)}


def encode(data):
    return base64.b64encode(data).decode()


def post(url, message, number):
    # (urllib would say application/x-www-form-urlencoded where an event has no content type.)
    address = urlsplit(url)
    connection = HTTPConnection(address.netloc, timeout=60)
    connection.request("POST", address.path, message.body, message.headers)
    answer = connection.getresponse()
    said = json.load(answer)
    assert (answer.status, said.get("accepted")) == (200, number), said
    connection.close()


def send(url):
    for event, expected in events("binary"):
        post(url, http.to_binary_event(event), 1)
        print(json.dumps(expected))
    for event, expected in events("structured"):
        post(url, http.to_structured_event(event), 1)
        print(json.dumps(expected))
    # The SDK makes no batches: they are what its format makes, in an array.
    batch, expected = zip(*events("batched"))
    body = b"[" + b",".join(JSONFormat().write(event) for event in batch) + b"]"
    headers = {"content-type": "application/cloudevents-batch+json; charset=utf-8"}
    post(url, http.HTTPMessage(headers, body), len(batch))
    print("\n".join(json.dumps(event) for event in expected))


def to_kafka():
    for mode, convert in (("binary", kafka.to_binary_event), ("structured", kafka.to_structured_event)):
        for event, _ in events(mode):
            message = convert(event, key_mapper=lambda event: event.get_source())
            headers = {name: encode(value) for name, value in message.headers.items()}
            print(json.dumps({"key": encode(message.key.encode()), "value": encode(message.value), "headers": headers}))


def from_kafka():
    for line in sys.stdin:
        record = json.loads(line)
        headers = {name: base64.b64decode(value) for name, value in record["headers"].items()}
        message = kafka.KafkaMessage(headers, None, base64.b64decode(record["value"]))
        event = kafka.from_kafka_event(message)
        attributes = {name: str(value) for name, value in event.get_attributes().items()}
        attributes["time"] = event.get_time().isoformat()
        data = event.get_data()
        if not isinstance(data, (str, bytes, type(None))):
            data = json.dumps(data)
        data = (data or b"") if not isinstance(data, str) else data.encode()
        print(json.dumps({"attributes": attributes, "data": encode(data)}))


{"send": lambda: send(sys.argv[2]), "to-kafka": to_kafka, "from-kafka": from_kafka}[sys.argv[1]]()
