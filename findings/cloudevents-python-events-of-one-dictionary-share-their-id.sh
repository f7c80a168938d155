#!/usr/bin/env bash
# cloudevents 2.2.0 (PyPI), `CloudEvent(attributes=…, data=…)` of `cloudevents.core.v1.event`.
#
# `id` and `time` may be left out, and are made up for each event then. They are made up inside the dictionary that was passed,
# which the event keeps as its own: whoever holds the common attributes in a constant and makes each event from it gets the first
# one's `id` and `time` in all of them. `source` and `id` say which event it is, so a receiver that deduplicates by them takes a
# thousand orders for one and drops the rest, and answers success. A write to the dictionary afterwards changes the events that
# were made from it before. A copy for each event (`dict(common)`) is the cure.
#
# Seen: `1000 events of one dictionary: 1 id, 1 time; of copies of it: 1000 ids; the dictionary afterwards: ['id', 'source',
# 'specversion', 'time', 'type']; the first event's type after a later write to it: order.cancelled`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet cloudevents==2.2.0
cat >finding.py <<'PYTHON'
from cloudevents.core.v1.event import CloudEvent

common = {"source": "/shop", "type": "order.placed"}
copies = {CloudEvent(attributes=dict(common), data={"number": n}).get_id() for n in range(1000)}
events = [CloudEvent(attributes=common, data={"number": n}) for n in range(1000)]
ids = {event.get_id() for event in events}
times = {event.get_time() for event in events}
names = sorted(common)
common["type"] = "order.cancelled"
print(f"1000 events of one dictionary: {len(ids)} id, {len(times)} time; of copies of it: {len(copies)} ids; the dictionary "
      f"afterwards: {names}; the first event's type after a later write to it: {events[0].get_type()}")
known = len(ids) == len(times) == 1 and len(copies) == 1000 and "id" in names and events[0].get_type() == "order.cancelled"
assert known, "it is otherwise now"
PYTHON
env/bin/python finding.py
