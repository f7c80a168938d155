import json
import sys

from cloudevents.core.v1.event import CloudEvent

for line in sys.stdin:
    for given in json.loads(line):
        type_ = "x" * 200 if given["wrong"] else "order.placed"
        attributes = {"type": type_, "source": "/shop", "id": given["id"], "datacontenttype": "application/json"}
        try:
            send_event(CloudEvent(attributes=attributes, data={"number": given["number"]}))
        except ValueError:
            print(json.dumps([given["number"]]), flush=True)
