#!/usr/bin/env bash
# cloudevents 2.2.0 (PyPI), `to_binary_event` and `from_http_event`, data of `application/json` that is no dictionary.
#
# A dictionary is sent as JSON. A list is sent as Python prints it, with single quotes, `None` and `True`, under `content-type:
# application/json`, without an error; a list of whole numbers happens to be JSON all the same, so that a test with one passes. A
# string is sent without its quotes: a number in a string (an order's, a postcode) is a number when this library reads it back, and
# its zeros or digits go with it elsewhere. What cannot be read as JSON comes back as a string, so that no error is seen here
# either. In structured mode each of them comes back as it was.
#
# Seen: `[1, 2] -> [1, 2] -> [1, 2]; [{'item': 'a', 'gift': None}] -> [{'item': 'a', 'gift': None}] -> "[{'item': 'a', 'gift':
# None}]"; True -> True -> 'True'; 'shipped' -> shipped -> 'shipped'; '42' -> 42 -> 42; structured mode keeps all: True`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet cloudevents==2.2.0
cat >finding.py <<'PYTHON'
import json

from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent

said, kept, no_json = [], True, []
for data in [1, 2], [{"item": "a", "gift": None}], True, "shipped", "42":
    attributes = {"id": "1", "source": "/finding", "type": "finding", "datacontenttype": "application/json"}
    event = CloudEvent(attributes=attributes, data=data)
    message = http.to_binary_event(event)
    assert message.headers["content-type"] == "application/json"
    try:
        json.loads(message.body)
    except ValueError:
        no_json.append(data)
    said.append(f"{data!r} -> {message.body.decode()} -> {http.from_http_event(message).get_data()!r}")
    kept = kept and http.from_http_event(http.to_structured_event(event)).get_data() == data
print("; ".join(said) + f"; structured mode keeps all: {kept}")
known = no_json == [[{"item": "a", "gift": None}], True, "shipped"] and said[-1] == "'42' -> 42 -> 42" and kept
assert known, "it is otherwise now"
PYTHON
env/bin/python finding.py
