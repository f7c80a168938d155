#!/usr/bin/env python3
"""Runs each recipe of docs/reading.md over an archive that the built binary wrote, and compares every record.

    run.py --binary target/release/ingestd [READER…]     readers or groups: light (the default), spark, all

Each reader gets a folder of packages of its own below --root (by default target/readers of this checkout), by pip. Exits with 1
when a reader fails, with 77 when its packages cannot be had.
"""

import argparse
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "jq": [],
    # The last one for Python 3.10.
    "pandas": ["pandas==3.1.1" if sys.version_info >= (3, 11) else "pandas==2.3.3", "zstandard==0.25.0"],
    "polars": ["polars==2.1.0"],
    "duckdb": ["duckdb==2.0.1"],
    "clickhouse": ["chdb==4.4.0"],
    "spark-3.5": ["pyspark==3.5.9", "zstandard==0.25.0"],
    "spark-4.0": ["pyspark==4.0.5", "zstandard==0.25.0"],
    "spark-4": ["pyspark==4.3.0"],
}
GROUPS = {
    "light": ["jq", "pandas", "polars", "duckdb"],
    "heavy": ["clickhouse", "spark-3.5", "spark-4.0", "spark-4"],
    "all": list(PACKAGES),
}
UNAVAILABLE = 77
PATIENCE = 60

# What stands around a recipe: it finds `rows` and prints them as JSON lines.
PYTHON = "{recipe}\n"
SPARK = """from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1").getOrCreate()
{recipe}
"""
DUCKDB = """import duckdb
rows = duckdb.sql(r\"\"\"{recipe}\"\"\").fetchall()
"""
CLICKHOUSE = """import chdb, json
rows = [json.loads(line) for line in str(chdb.query(r\"\"\"{recipe}\"\"\", "JSONCompactEachRow")).split("\\n") if line]
"""
PRINT = """
import json
with open({out!r}, "w") as file:
    for row in rows:
        file.write(json.dumps(list(row)) + "\\n")
"""
AROUND = {"duckdb": DUCKDB, "clickhouse": CLICKHOUSE, "spark-3.5": SPARK, "spark-4.0": SPARK, "spark-4": SPARK}


def events():
    """Events that are odd in ways that readers stumble over, and whether they stand as events."""
    deep = b"[" * 125 + b"]" * 125
    for rest in (
        b'"n":1,"nested":{"a":[1,2.5,{"b":null}],"c":true}',
        b'"n":"a text here","nested":[1]',
        b'"n":{"an":"object"}',
        b'"n":[[]],"nested":null',
        b'"a":1,"A":2,"Type":"x"',
        b'"n":123456789012345678901234567890,"m":1.7976931348623157e308,"t":1e-400,"z":-0,"f":0.1',
        b'"s":"\\u0000x","\\u0000":1,"":2',
        '"s":"\\ud83d\\ude00 😀 \u2028 \u0085 \uffff \x7f","ä \\" \\\\":"/"'.encode(),
        b'"deep":' + deep,
        b'\r\n "lines"\n:\r\n[1,\n2]',
        b'"' + b"k" * 50_000 + b'":1',
        b'"s":"' + b"x" * 500_000 + b'"',
        b",".join(b'"k%d":%d' % (at, at) for at in range(3000)),
        b'"d":"2026-13-45","offset":"x","event":{"event":1},"raw":"?","received":7',
        b'"digits":' + b"7" * 300 + b"." + b"7" * 600,
    ):
        yield b'{"type":"good","client_id":"c",' + rest + b"}", True
    for rest in (
        b'"a":1,"a":2',
        b'"x":{"a":1,"\\u0061":2}',
        b'"s":"\\ud800"',
        b'"n":1e400',
        b'"n":-2e308',
        b'"n":' + b"7" * 4301,
        b'"n":0.' + b"7" * 1200,
        b'"' + b"k" * 60_000 + b'":1',
    ):
        yield b'{"type":"odd","client_id":"c",' + rest + b"}", False
    # Fields that begin in later objects than any sample looks at.
    for at in range(400):
        yield b'{"type":"late","client_id":"c","late%d":%d}' % (at, at), True


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write_archive(binary, data):
    """Posts the events to a daemon that takes them all, and stops it. In the order of their offsets."""
    sent = list(events())
    address, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    settings = {
        "data.dir": data,
        "http.listen": address,
        "admin.listen": admin,
        "event.on_unreadable": "accept",
        "spool.max_records": 10,
        "disk.max_used_percent": 99.5,
        "disk.resume_percent": 99,
    }
    command = [binary, "run", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    with open(data / "log", "wb") as log:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        for event, _ in sent:
            post(f"http://{address}/v1/events", event, daemon)
        wait_read(f"http://{admin}/metrics", len(sent))
        daemon.send_signal(signal.SIGTERM)
        if daemon.wait(PATIENCE) != 0:
            sys.exit(f"the daemon ended with {daemon.returncode}:\n{(data / 'log').read_text()}")
    finally:
        daemon.kill()
        daemon.wait()
    return sent


def post(url, event, daemon):
    request = urllib.request.Request(url, event, {"Content-Type": "application/json"})
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):
                return
        except urllib.error.HTTPError as refused:
            # While it starts, a daemon listens and says 503.
            if refused.code != 503 or time.monotonic() > deadline:
                sys.exit(f"refused: {refused.read().decode()}: {event[:80]}")
            time.sleep(0.05)
        except urllib.error.URLError as away:
            if daemon.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the daemon cannot be reached: {away}")
            time.sleep(0.05)


def wait_read(url, records):
    """Until the archive has read all: a stop leaves what is not read yet to the next start."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with urllib.request.urlopen(url, timeout=PATIENCE) as metrics:
            read = re.search(r'^ingestd_events_consumed_total\{.*sink="archive".*\} (\d+)', metrics.read().decode(), re.MULTILINE)
        if read and int(read[1]) >= records:
            return
        if time.monotonic() > deadline:
            sys.exit(f"the archive has read {read[1] if read else 0} of {records} records in {PATIENCE} s")
        time.sleep(0.05)


def recipes():
    """The blocks of docs/reading.md by the readers that the comment before each names."""
    text = (CHECKOUT / "docs/reading.md").read_text()
    blocks = re.findall(r"<!-- reader: ([^>]*) -->\n```(\w+)\n(.*?)```", text, re.DOTALL)
    return {reader: (language, block) for readers, language, block in blocks for reader in readers.split()}


def install(reader, root):
    """The folder of the reader's packages."""
    folder = root / "-".join([reader, *PACKAGES[reader]]).replace("==", "-")
    if (folder / "complete").exists():
        return folder
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action", "ignore"]
    for _ in range(4):
        # Into a folder of its own, so that one that is killed leaves nothing that looks whole.
        shutil.rmtree(folder, ignore_errors=True)
        if subprocess.run([*pip, "--target", folder, *PACKAGES[reader]]).returncode == 0:
            (folder / "complete").touch()
            return folder
    print(f"{', '.join(PACKAGES[reader])} cannot be installed: pip says why above")
    sys.exit(UNAVAILABLE)


def read(reader, archive, root, folder):
    """What the reader's recipe makes of the archive: rows of partition, offset, event and raw."""
    language, recipe = recipes()[reader]
    recipe = recipe.replace("ARCHIVE", str(archive))
    if language == "sh":
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", recipe], stdout=subprocess.PIPE, check=True)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        # jq has made trees of the events; null is what it has for none.
        return [(partition, offset, None if event is None else json.dumps(event), raw) for partition, offset, event, raw in rows]
    packages, out = install(reader, root), folder / f"{reader}.jsonl"
    program = AROUND.get(reader, PYTHON).replace("{recipe}", recipe) + PRINT.replace("{out!r}", repr(str(out)))
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise AssertionError(done.stdout.decode(errors="replace")[-4000:])
    with open(out) as file:
        return [tuple(json.loads(line)) for line in file]


def same(one, other):
    """Whether both are the same JSON, numbers as doubles: some readers write them anew."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)) and not isinstance(one, bool):
        return float(one) == float(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def compare(rows, sent):
    found = {}
    for partition, offset, event, raw in rows:
        assert partition == 0, f"partition {partition}"
        assert found.setdefault(offset, (event, raw)) == (event, raw) and len(found) <= len(sent), f"offset {offset} twice"
    assert len(rows) == len(sent), f"{len(rows)} rows of {len(sent)} records"
    for offset, (value, stands_as_event) in enumerate(sent):
        event, raw = found.get(offset, (None, None))
        told = f"offset {offset}, {value[:60]}: {str(event)[:200]}, {str(raw)[:60]}"
        if stands_as_event:
            assert raw is None and event is not None and same(json.loads(event), json.loads(value)), told
        else:
            assert event is None and raw is not None and base64.b64decode(raw) == value, told


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binary", default="target/release/ingestd")
    options.add_argument("--root", type=Path, default=CHECKOUT / "target/readers")
    options.add_argument("readers", nargs="*", default=["light"])
    chosen = options.parse_args()
    readers = [reader for name in chosen.readers for reader in GROUPS.get(name, [name])]
    if unknown := [reader for reader in readers if reader not in PACKAGES]:
        options.error(f"unknown: {', '.join(unknown)}; there are {', '.join([*GROUPS, *PACKAGES])}")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = folder / "data"
        data.mkdir()
        sent = write_archive(os.path.abspath(chosen.binary), data)
        for reader in readers:
            try:
                compare(read(reader, data / "archive", chosen.root, folder), sent)
                print(f"{reader} ({', '.join(PACKAGES[reader]) or 'as installed'}): {len(sent)} records", flush=True)
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed.append(reader)
                print(f"{reader}: FAILED: {error}", flush=True)
    print(f"{len(readers) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
