#!/usr/bin/env python3
"""post.py HOST:PORT: posts events as Python's programs and common shippers do, and prints for each way a line of JSON:
its name, the status, and the answer's body.
"""

import gzip
import http.client
import json
import sys
import zlib

HOST = sys.argv[1]


def post(way, body, headers):
    connection = http.client.HTTPConnection(HOST, timeout=60)
    connection.request("POST", "/v1/events", body=body, headers=headers)
    answer = connection.getresponse()
    print(json.dumps([way, answer.status, json.loads(answer.read())]), flush=True)
    connection.close()


def events(way, count=3):
    return [{"type": "python", "event_id": f"{way}-{n}", "text": "größer" * (n % 50)} for n in range(count)]


def array(way, count=3):
    return json.dumps(events(way, count)).encode()


def lines(way):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events(way))


def in_pieces(way):
    """A stream that is flushed behind each event, in chunks."""
    encoder = zlib.compressobj(wbits=31)
    for line in lines(way).splitlines(keepends=True):
        yield encoder.compress(line) + encoder.flush(zlib.Z_SYNC_FLUSH)
    yield encoder.flush()


def raw_deflate(body):
    encoder = zlib.compressobj(wbits=-15)
    return encoder.compress(body) + encoder.flush()


JSON = {"Content-Type": "application/json"}
post("gzip", gzip.compress(array("gzip")), JSON | {"Content-Encoding": "gzip"})
post("large", gzip.compress(array("large", 5000)), JSON | {"Content-Encoding": "gzip"})
post("members", gzip.compress(b"[" + lines("a")) + gzip.compress(b"]"), JSON | {"Content-Encoding": "gzip"})
members = b"".join(gzip.compress(line) for line in lines("members").splitlines(keepends=True))
post("members of lines", members, {"Content-Type": "application/jsonl", "Content-Encoding": "gzip"})
post("zlib", zlib.compress(array("zlib")), JSON | {"Content-Encoding": "deflate"})
post("raw deflate", raw_deflate(array("raw")), {"Content-Encoding": "deflate"})
post("pieces", in_pieces("pieces"), {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"})
for media_type in "application/ndjson", "application/jsonl", "application/x-jsonlines; charset=utf-8":
    post(media_type, lines(media_type), {"Content-Type": media_type})
# Fluent Bit's json_stream.
stream = "".join(json.dumps(event) for event in events("stream")).encode()
post("json_stream", stream, JSON)
post("json_stream in gzip", gzip.compress(stream.replace(b"stream-", b"gzipped-")), JSON | {"Content-Encoding": "gzip"})
# Python writes numbers that JSON has not, Excel's exports and PowerShell a byte order mark.
post("NaN", json.dumps([events("nan")[0], {"type": "python", "x": float("nan")}, events("nan")[1]]).encode(), JSON)
post("utf-8-sig", json.dumps(events("mark")).encode("utf-8-sig"), JSON)
post("utf-16", json.dumps(events("utf-16")).encode("utf-16"), JSON)
post("us-ascii", json.dumps(events("ascii")).encode("ascii"), {"Content-Type": "application/json; charset=us-ascii"})
post("nothing", b"", {"Content-Encoding": "gzip"})
post("gzip of nothing", gzip.compress(b""), {"Content-Encoding": "gzip"})
