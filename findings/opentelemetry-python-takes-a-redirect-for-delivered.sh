#!/usr/bin/env bash
# opentelemetry-exporter-otlp-proto-http 1.45.2 and opentelemetry-sdk 1.45.2 (PyPI), logs over OTLP/HTTP.
#
# A collector behind a proxy that sends plain HTTP on to HTTPS (308), or to another path or name (301, 302, 307), gets nothing from
# this exporter, and nobody is told: it follows no redirect, and takes each status from 200 to 399 for success. `export` says
# SUCCESS, `force_flush` True, no line is logged, and each event is gone, though OTLP has a server say success with 200. A 404 in
# the same place is a FAILURE and is logged with its code. A collector that moved, or an endpoint with `http` where it should be
# `https`, is then found by the gap in the data alone.
#
# Seen: `301: SUCCESS, flushed True, logged 0; 302: SUCCESS, flushed True, logged 0; 307: SUCCESS, flushed True, logged 0; 308:
# SUCCESS, flushed True, logged 0; 404: FAILURE, flushed True, logged 1; events where the redirects lead: 0`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2 requests==2.32.5
cat >finding.py <<'PYTHON'
import http.server, logging, threading
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

arrived, answer = [], 0


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/moved/v1/logs":
            arrived.append(self.path)
            self.send_response(200)
        else:
            self.send_response(answer)
            if answer < 400:
                self.send_header("Location", "/moved/v1/logs")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())


lines, outcomes = [], []
logging.getLogger("opentelemetry").addHandler(Lines(level=logging.INFO))
logging.getLogger("opentelemetry").propagate = False
proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 29651), Proxy)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
for answer in 301, 302, 307, 308, 404:
    lines.clear()
    exporter = OTLPLogExporter(endpoint="http://127.0.0.1:29651/v1/logs")
    results, export = [], exporter.export

    def noted(batch):
        results.append(export(batch))
        return results[-1]

    exporter.export = noted
    provider = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    provider.get_logger("finding").emit(LogRecord(timestamp=1, body="an event"))
    flushed = provider.force_flush()
    provider.shutdown()
    outcomes.append((answer, ", ".join(each.name for each in results), flushed, len(lines)))
said = "; ".join(f"{status}: {result}, flushed {flushed}, logged {count}" for status, result, flushed, count in outcomes)
print(f"{said}; events where the redirects lead: {len(arrived)}")
assert outcomes[:4] == [(status, "SUCCESS", True, 0) for status in (301, 302, 307, 308)], "they are not taken for success now"
assert outcomes[4][1] == "FAILURE" and outcomes[4][3] > 0 and not arrived, "it is otherwise now"
PYTHON
env/bin/python finding.py
