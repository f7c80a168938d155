"""An answer that the embedded log never gives, since it takes all of a request or nothing: a part of it failed for a passing reason.

A server of two answers stands for the daemon here, and a loop of docs/clients.md has to send that part alone.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WRONG, AGAIN = 1, 3


def answers(requests):
    """Answers the first request by halves, and the second with success; notes the events of both."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def end_headers(self):
            # For pages.
            for name in ("Allow-Origin", "Allow-Headers", "Expose-Headers"):
                self.send_header(f"Access-Control-{name}", "*")
            super().end_headers()

        def do_OPTIONS(self):
            self.send_response(204)
            self.end_headers()

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            events = json.loads(body) if body.startswith("[") else [json.loads(line) for line in body.splitlines()]
            requests.append((self.headers["Prefer"], [event["number"] for event in events]))
            ids = [event["event_id"] for event in events]
            told = {"accepted": len(events), "rejected": 0, "ids": ids}
            if len(requests) == 1:
                wrong = {"index": WRONG, "code": "missing_type", "message": "field \"type\" is missing"}
                again = {"index": AGAIN, "code": "unavailable", "message": "the partition has no leader", "retry": True}
                told = {"accepted": len(events) - 2, "rejected": 2, "ids": ids, "errors": [wrong, again]}
            text = json.dumps(told, separators=(",", ":")).encode()
            self.send_response(207 if "errors" in told else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if "errors" in told:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def check(sender, run, chunk):
    """What the loop did otherwise than it should."""
    requests = []
    server = answers(requests)
    run.address = f"127.0.0.1:{server.server_port}"
    running = sender.start(run)
    try:
        running.give(chunk)
        running.finish()
        told = running.refused()
    finally:
        running.kill()
        server.shutdown()
        server.server_close()
    given = [event["number"] for event in chunk]
    wanted = [("handling=lenient", given), ("handling=lenient", [given[AGAIN]])]
    faults = [] if requests == wanted else [f"with a part to be sent again it sent {requests}, not {wanted}"]
    return faults if told == [given[WRONG]] else [*faults, f"with a part to be sent again it told {told} to be wrong"]
