# Reads chunks from standard input, one a line, sends each, and prints the numbers of what was refused.
import json
import sys

for line in sys.stdin:
    refused = send([given["event"] for given in json.loads(line)])
    print(json.dumps([event["number"] for event, reason in refused]), flush=True)
