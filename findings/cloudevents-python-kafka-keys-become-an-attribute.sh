#!/usr/bin/env bash
# cloudevents 2.2.0 (PyPI), its Kafka binding (no broker is needed: it makes and reads the records alone).
#
# A program may give its records a key of its own, with a `key_mapper`: the account's, so that its events stay in order. Each event
# that is read back has an attribute `partitionkey` with that key, which nobody gave it, in binary and in structured mode; an event
# that has such an attribute loses its value to the key. What passes events on (to HTTP, to an archive, to another topic, whose
# default mapper takes the attribute for the key) passes that on too: two that sign, compare or deduplicate whole events find
# each changed. A key that is not UTF-8 (a number of 8 bytes, as Kafka's LongSerializer writes it) makes the event unreadable,
# though it says nothing of the event.
#
# Seen: `binary: sent ['id', 'source', 'specversion', 'time', 'type'], read also partitionkey 'account-7'; structured: the same; an
# attribute 'eu' is read as 'account-7'; a key of 8 bytes: UnicodeDecodeError`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet cloudevents==2.2.0
cat >finding.py <<'PYTHON'
import struct
from datetime import UTC, datetime

from cloudevents.core.bindings import kafka
from cloudevents.core.v1.event import CloudEvent

attributes = {"id": "1", "source": "/finding", "type": "finding", "time": datetime.now(UTC)}
event = CloudEvent(attributes=attributes, data={"n": 1})
sent = sorted(event.get_attributes())


def account(_):
    return "account-7"


def added(write):
    read = kafka.from_kafka_event(write(event, key_mapper=account)).get_attributes()
    return {name: read[name] for name in read if name not in sent}


binary, structured = added(kafka.to_binary_event), added(kafka.to_structured_event)
named = CloudEvent(attributes={**attributes, "partitionkey": "eu"}, data={"n": 1})
lost = kafka.from_kafka_event(kafka.to_binary_event(named, key_mapper=account)).get_extension("partitionkey")
try:
    kafka.from_kafka_event(kafka.to_binary_event(event, key_mapper=lambda _: struct.pack(">q", 200)))
    number = "read"
except ValueError as error:
    number = type(error).__name__
print(f"binary: sent {sent}, read also partitionkey {binary.get('partitionkey')!r}; structured: "
      f"{'the same' if structured == binary else structured}; an attribute 'eu' is read as {lost!r}; a key of 8 bytes: {number}")
known = {"partitionkey": "account-7"}
assert binary == structured == known and lost == "account-7" and number == "UnicodeDecodeError", "it is otherwise now"
PYTHON
env/bin/python finding.py
