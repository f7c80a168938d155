#!/usr/bin/env bash
# snowplow-tracker 1.1.0 (PyPI), an Emitter with `batch_size=1`: a request for each event.
#
# A collector answers 413 to a request that is larger than it takes. The tracker tries again at all failures but 400, 401, 403, 410
# and 422, so also at 413, with the same events, and not alone: a retry takes all that came in meanwhile, without regard to
# `batch_size`. One event that is too large for the collector is in each request from then on, each is larger than the one before,
# and none of the events after it arrives, until the buffer's 10,000 are full and new ones are dropped. With
# `custom_retry_codes={413: False}` the others arrive.
#
# Seen: `arrived: [0, 1, 2] of 10; refused: first 1 event, at last 7 at once; with 413 not tried again: [0, 1, 2, 4, 5, 6, 7, 8,
# 9]`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet snowplow-tracker==1.1.0
cat >finding.py <<'PYTHON'
import http.server, json, logging, os, threading, time
from snowplow_tracker import Emitter, StructuredEvent, Tracker

arrived, refused = [], []


class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        events = [int(event["se_la"]) for event in json.loads(body)["data"]]
        fits = len(body) <= 10_000
        arrived.extend(events if fits else [])
        refused.extend([] if fits else [len(events)])
        self.send_response(200 if fits else 413)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def run(**settings):
    arrived.clear()
    refused.clear()
    emitter = Emitter("127.0.0.1:29671", protocol="http", method="post", batch_size=1, max_retry_delay_seconds=2,
                      **settings)
    tracker = Tracker(namespace="finding", emitters=emitter)
    for n in range(10):
        tracker.track(StructuredEvent(category="web", action="x" * (20_000 if n == 3 else 10), label=str(n)))
    time.sleep(12)
    tracker.flush()
    return list(arrived), list(refused)


logging.disable(logging.CRITICAL)
threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1", 29671), Collector).serve_forever, daemon=True).start()
through, sizes = run()
without, _ = run(custom_retry_codes={413: False})
print(f"arrived: {through} of 10; refused: first {sizes[0]} event, at last {sizes[-1]} at once; "
      f"with 413 not tried again: {without}", flush=True)
known = through == [0, 1, 2] and sizes[0] == 1 and sizes[-1] == 7 and without == [0, 1, 2, 4, 5, 6, 7, 8, 9]
os._exit(0 if known else 1)
PYTHON
env/bin/python finding.py
