#!/usr/bin/env python3
"""Compares what aggregates answer with what DuckDB computes over the archive of the same events.

    aggregates.py --binary target/release/ingestd [--store embedded|mongodb] [--events 60000]

Five aggregates of all measures over 24 hours of event time: 10,000 groups, a JSON pointer, a filter, days of a time zone, and more
groups than max_groups. Counts, sums, minima, maxima and averages have to be DuckDB's, digit by digit (DECIMAL(38,17)); `unique`
and `top` within the error that docs/aggregates.md states. Exits with 1 when something differs, with 77 when the packages cannot be had.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal, getcontext
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

sys.path.insert(0, str(Path(__file__).parent))
import run  # noqa: E402

ALL = """["count", { sum = "/amount" }, { min = "/amount" }, { max = "/amount" }, { avg = "/amount" },
    { unique = "user_id" }, { top = "ip", k = 5 }]"""
DEFINITIONS = f"""
[[aggregate]]
name = "by_client"
window = "1h"
group_by = ["client_id"]
measures = {ALL}

[[aggregate]]
name = "by_type"
window = "1h"
group_by = ["type"]
measures = {ALL}

[[aggregate]]
name = "of_countries"
window = "5m"
group_by = ["/geo/country"]
filter = {{ type = ["t1", "t2", "t3"], "/amount" = {{ min = -50, max = 700.25 }}, "/geo/city" = {{ prefix = "B" }} }}
measures = {ALL}

[[aggregate]]
name = "by_day"
window = "1d"
time_zone = "Europe/Berlin"
group_by = ["type"]
measures = {ALL}

[[aggregate]]
name = "few"
window = "1h"
group_by = ["user_id"]
max_groups = 20
measures = {ALL}
"""
HOURS = 24
CLIENTS = 10_000
ZONE = ZoneInfo("Europe/Berlin")
# Sums have up to 42 digits.
getcontext().prec = 60
# docs/aggregates.md
UNIQUE_ERROR = 0.017
TOP_ERROR = 0.014
# Up to so many different values are counted exactly.
UNIQUE_EXACT = 100
TOP_PLACES = 192
SIGMAS = 4.5
AT_ONCE = 1000
QUERIES = 31

# The rows of `e`, each with what a group needs, as (window, group, where).
AGGREGATES = {
    "by_client": ("date_trunc('hour', time)", "client_id", "true"),
    "by_type": ("date_trunc('hour', time)", "type", "true"),
    "of_countries": (
        "time_bucket(INTERVAL 5 MINUTES, time)",
        "country",
        "type IN ('t1', 't2', 't3') AND coalesce(exact BETWEEN -50 AND 700.25, amount::DOUBLE BETWEEN -50 AND 700.25) AND starts_with(city, 'B')",
    ),
    "by_day": ("date_trunc('day', time AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'Europe/Berlin'", "type", "true"),
    # Of each window the first 20 groups by the order of the offsets.
    "few": ("date_trunc('hour', time)", "CASE WHEN place <= 20 THEN user_id ELSE '…other' END", "true"),
}
# DuckDB's JSON makes doubles of numbers: they are taken out of the lines as they stand there.
LOAD = """
SET TimeZone = 'UTC';
CREATE TABLE lines AS SELECT line FROM read_csv('{archive}/topic=events/*/*/*.ndjson.zst', columns = {{line: 'VARCHAR'}},
    header = false, delim = '\x01', quote = '', escape = '', hive_partitioning = false, max_line_size = 16777216);
CREATE TABLE values_of AS SELECT (line->>'$.offset')::UBIGINT AS "offset", (line->>'$.event.timestamp')::TIMESTAMPTZ AS time,
    line->>'$.event.type' AS type, line->>'$.event.client_id' AS client_id, line->>'$.event.user_id' AS user_id,
    line->>'$.event.ip' AS ip, line->>'$.event.geo.country' AS country, line->>'$.event.geo.city' AS city,
    nullif(regexp_extract(line, '"amount":(-?[0-9][0-9.eE+-]*)', 1), '') AS amount
    FROM lines;
CREATE TABLE numbers AS SELECT *,
    CASE WHEN regexp_full_match(amount, '-?[0-9]{{1,15}}([.][0-9]{{1,17}})?|-?[0-9]([.][0-9]{{1,3}})?e-?[0-9]')
        THEN amount::DECIMAL(38,17) END AS exact,
    date_trunc('hour', time) AS hour FROM values_of;
CREATE TABLE first_of AS SELECT hour, user_id, row_number() OVER (PARTITION BY hour ORDER BY min("offset")) AS place
    FROM numbers GROUP BY hour, user_id;
CREATE TABLE e AS SELECT numbers.*, place FROM numbers JOIN first_of USING (hour, user_id);
"""
QUESTION = """
SELECT epoch({window})::BIGINT AS w, {group} AS g, count(*), count(exact), sum(exact), min(exact), max(exact),
    count(amount) - count(exact), count(DISTINCT user_id), histogram(ip) FILTER (ip IS NOT NULL)
FROM e WHERE {where} GROUP BY w, g
"""


def event(rng, n, events, begin):
    """Mostly in the order of their times; one in fifty is hours late."""
    at = n * HOURS * 3600 / events + rng.uniform(-600, 600)
    if n % 50 == 0:
        at -= rng.uniform(0, 6 * 3600)
    at = begin + timedelta(seconds=min(max(at, 0), HOURS * 3600 - 0.001))
    kind = rng.random()
    if kind < 0.9:
        places = rng.randrange(18)
        fraction = f".{rng.randrange(10**places):0{places}}" if places else ""
        amount = f"{rng.choice(['', '-'])}{rng.randrange(1000)}{fraction}"
    elif kind < 0.92:
        amount = f"{rng.randrange(10**14, 10**15)}.{rng.randrange(10**17):017}"
    elif kind < 0.94:
        amount = f"{rng.randrange(1, 10)}.{rng.randrange(1000):03}e{rng.randrange(-9, 10)}"
    elif kind < 0.96:
        amount = rng.choice(["1e40", "0.123456789012345678", "-1000000000000000"])
    else:
        amount = rng.choice(["null", '"7"', "[1]"])
    country = rng.choice(['"DE"', '"\\u00d6"', '"CH"', "null", '"A \\"T\\""'])
    user, ip = often_or_seldom(rng, 50_000), often_or_seldom(rng, 100_000)
    address = "null" if ip % 97 == 5 else f'"10.{ip >> 16}.{ip >> 8 & 255}.{ip & 255}"'
    return (
        f'{{"type":"t{rng.randrange(10)}","timestamp":"{at.isoformat(timespec="milliseconds")}","client_id":"c{rng.randrange(CLIENTS)}",'
        f'"amount":{amount},"user_id":"u{user}","ip":{address},"geo":{{"country":{country},"city":"{rng.choice("ABC")}{n % 7}"}}}}'
    )


def often_or_seldom(rng, different):
    """Every second time one of few."""
    return int(rng.paretovariate(0.8)) % different if rng.random() < 0.5 else rng.randrange(different)


def start(binary, folder, settings):
    (folder / "config.toml").write_text(DEFINITIONS)
    command = [binary, "run", "--config", str(folder / "config.toml")]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def send(address, daemon, events, begin):
    rng = random.Random(21)
    deadline = time.monotonic() + 600
    connection = http.client.HTTPConnection(address, timeout=run.PATIENCE)
    for first in range(0, events, AT_ONCE):
        body = "\n".join(event(rng, n, events, begin) for n in range(first, min(first + AT_ONCE, events))).encode()
        while True:
            try:
                connection.request("POST", "/v1/events", body, {"Content-Type": "application/x-ndjson"})
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as away:
                answer, said = None, str(away)
                connection.close()
            if answer is not None and answer.status == 200:
                break
            # 503 while it starts, and while it has much to do.
            waits = answer is None or answer.status in (429, 503)
            if not waits or daemon.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"events are refused: {answer and answer.status} {said}")
            time.sleep(0.05)


def get(address, path):
    deadline = time.monotonic() + run.PATIENCE
    while True:
        connection = http.client.HTTPConnection(address, timeout=run.PATIENCE)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        if answer.status == 200:
            return body
        # 503: not within its time, on a machine that does other things.
        if answer.status != 503 or time.monotonic() > deadline:
            raise AssertionError(f"{path}: {answer.status} {body}")


def metric(address, name):
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)", get(address, "/metrics"), re.MULTILINE)
    return sum(map(float, found))


def wait_counted(address, events, daemon):
    deadline = time.monotonic() + 1800
    names = ("ingestd_events_aggregated_total", "ingestd_events_archived_total")
    while True:
        found = [metric(address, name) for name in names]
        if found == [events, events]:
            return
        if daemon.poll() is not None or time.monotonic() > deadline or max(found) > events:
            sys.exit(f"{dict(zip(names, found))} of {events}, the daemon: {daemon.poll()}")
        time.sleep(0.1)


def answered(address, name, parameters):
    """All rows, page by page."""
    rows, cursor = [], ""
    while True:
        answer = get(address, f"/v1/aggregates/{name}?{parameters}&limit=100000{cursor}")
        answer = json.loads(answer, parse_float=Decimal, parse_int=Decimal)
        rows += answer["rows"]
        if "next" not in answer:
            return rows
        cursor = f"&cursor={answer['next']}"


def expected(database, name, window=None, group=None):
    own_window, own_group, where = AGGREGATES[name]
    question = QUESTION.format(window=window or own_window, group=group or own_group, where=where)
    return {(row[0], row[1]): row[2:] for row in database.sql(question).fetchall()}


class Off:
    """How far the estimates are off, each as a share of the exact number."""

    def __init__(self):
        self.unique, self.top, self.exact_tops, self.tops = [], [], 0, 0


def compare(name, rows, wanted, off):
    """Each row, and as many as there are."""
    assert len(rows) == len(wanted), f"{name}: {len(rows)} rows instead of {len(wanted)}"
    for row in rows:
        start = int(datetime.fromisoformat(row["window_start"].replace("Z", "+00:00")).timestamp())
        (group,) = row["group"].values() or (None,)
        key = (start, group)
        assert key in wanted, f"{name}: nothing is expected at {key}"
        count, numbers, total, least, most, inexact, users, ips = wanted[key]
        mean = average(total, numbers) if numbers else None
        told = f"{name} {key}: {row} instead of {wanted[key][:7]}, {mean}"
        measures = row["measures"]
        exact = (count, total, least, most, mean, inexact)
        found = (row["count"], *(measures[f"{of}(/amount)"] for of in ("sum", "min", "max", "avg")), row["inexact"])
        assert found == exact, told
        check_unique(int(measures["unique(user_id)"]), users, off, told)
        check_top(measures["top(ip)"], int(row.get("errors", {}).get("top(ip)", 0)), ips or {}, off, told)


def average(total, numbers):
    """Rounded to 17 places, halves upwards."""
    units = int(total.scaleb(17))
    return Decimal((2 * units + numbers) // (2 * numbers)).scaleb(-17)


def check_unique(found, exact, off, told):
    if exact <= UNIQUE_EXACT:
        assert found == exact, told
    else:
        off.unique.append((found - exact) / exact)
        assert abs(off.unique[-1]) <= SIGMAS * UNIQUE_ERROR, f"{found} of {exact} users: {told}"


def check_top(found, error, exact, off, told):
    off.tops += 1
    values = [(item["value"], int(item["count"])) for item in found]
    if len(exact) < TOP_PLACES:
        off.exact_tops += 1
        right = sorted(exact.items(), key=lambda item: (-item[1], item[0]))[:5]
        assert (values, error) == (right, 0), f"{right}: {told}"
        return
    total = sum(exact.values())
    assert len(values) <= 5 and error <= TOP_ERROR * total, told
    # What is missing occurs no more often than the error, or than that beyond the last one.
    listed, last = dict(values), values[4][1] if len(values) == 5 else 0
    assert all(count <= last + error or value in listed for value, count in exact.items()), told
    for value, count in values:
        assert abs(exact.get(value, 0) - count) <= error, f"{value}, {exact.get(value)}, not within {error}: {told}"
        off.top.append(abs(exact.get(value, 0) - count) / total)


def check(address, archive, begin):
    import duckdb

    database = duckdb.connect()
    for statement in LOAD.format(archive=archive).split(";\n"):
        database.sql(statement)
    off, compared = Off(), 0
    end = begin + timedelta(hours=HOURS)
    of = f"from={stamp(begin)}&to={stamp(end)}"
    midnight, after = day(begin), day(end + timedelta(days=1))
    of_days = f"from={stamp(midnight)}&to={stamp(after)}"
    hour, whole = "date_trunc('hour', time)", f"to_timestamp({int(begin.timestamp())})"
    questions = [(name, of_days if name == "by_day" else of, None, None) for name in AGGREGATES]
    questions += [
        # Steps, subsets of the groups, and the whole.
        ("of_countries", f"{of}&step=1h", hour, None),
        ("by_client", f"{of}&step=all", whole, None),
        ("by_client", f"{of}&step=1h&group_by=", hour, "NULL"),
        ("of_countries", f"{of}&step=all&group_by=", whole, "NULL"),
    ]
    for name, parameters, window, group in questions:
        rows, wanted = answered(address, name, parameters), expected(database, name, window, group)
        compare(name, rows, wanted, off)
        print(f"{name}?{parameters}: {len(rows)} rows are DuckDB's", flush=True)
        compared += len(rows)
    others = database.sql("SELECT count(*) FROM e WHERE place > 20").fetchall()[0][0]
    counted = metric(address, "ingestd_events_in_other_total")
    assert counted == others > 0, f"{counted} records in …other instead of {others}"
    spread = (sum(error**2 for error in off.unique) / max(len(off.unique), 1)) ** 0.5
    assert spread and spread <= 1.3 * UNIQUE_ERROR, f"a relative standard error of {spread}"
    assert off.top and off.exact_tops, "tops of few and of many values"
    print(f"{compared} rows; unique: a relative standard error of {spread:.4f}, at most {max(map(abs, off.unique)):.4f}, in {len(off.unique)} rows of many")
    print(f"top: {off.exact_tops} of {off.tops} lists exact, else at most {max(off.top):.5f} of all values off")


def stamp(time):
    return quote(time.astimezone(timezone.utc).isoformat().replace("+00:00", "Z"))


def day(time):
    """The midnight before, there."""
    return time.astimezone(ZONE).replace(hour=0, minute=0, second=0, microsecond=0).astimezone(timezone.utc)


def measure(address, begin):
    """Ten groups over 24 hours, in rows of an hour and in one."""
    of = f"from={stamp(begin)}&to={stamp(begin + timedelta(hours=HOURS))}"
    for step in ("1h", "all"):
        took = []
        for _ in range(QUERIES):
            began = time.perf_counter()
            get(address, f"/v1/aggregates/by_type?{of}&step={step}")
            took.append(1000 * (time.perf_counter() - began))
        print(f"by_type over 24 hours by 10 groups, step={step}: {sorted(took)[QUERIES // 2]:.1f} ms at the median of {QUERIES}")


def mongodb(folder, settings):
    services = Path(__file__).parents[1] / "services/services.py"
    installed = subprocess.run([sys.executable, services, "install", "mongodb"])
    if installed.returncode != 0:
        sys.exit(run.UNAVAILABLE)
    (folder / "mongodb").mkdir()
    port = run.free_port()
    command = [sys.executable, services, "run", "mongodb", "--dir", folder / "mongodb", "--ports", str(port)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    settings |= {"store.kind": "mongodb", "store.url": f"mongodb://127.0.0.1:{port}/?directConnection=true", "store.database": "proof"}
    return guard


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binary", default="target/release/ingestd")
    options.add_argument("--store", choices=["embedded", "mongodb"], default="embedded")
    options.add_argument("--events", type=int, default=60_000)
    options.add_argument("--root", type=Path, default=run.CHECKOUT / "target/readers")
    chosen = options.parse_args()
    sys.path.insert(0, str(run.install("duckdb", chosen.root)))
    begin = (datetime.now(timezone.utc) - timedelta(hours=HOURS + 1)).replace(minute=0, second=0, microsecond=0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        address, admin = (f"127.0.0.1:{run.free_port()}" for _ in range(2))
        settings = {
            "data.dir": folder / "data",
            "http.listen": address,
            "admin.listen": admin,
            "spool.max_age": "2s",
            "disk.max_used_percent": 99.5,
            "disk.resume_percent": 99,
        }
        guard = mongodb(folder, settings) if chosen.store == "mongodb" else None
        daemon = start(os.path.abspath(chosen.binary), folder, settings)
        try:
            began = time.monotonic()
            send(address, daemon, chosen.events, begin)
            sent = time.monotonic() - began
            wait_counted(admin, chosen.events, daemon)
            print(f"{chosen.events} events on the {chosen.store} store: sent in {sent:.1f} s, counted and archived after {time.monotonic() - began:.1f} s")
            print(f"peak memory: {peak(daemon.pid)} MiB", flush=True)
            check(admin, folder / "data/archive", begin)
            measure(admin, begin)
            daemon.send_signal(signal.SIGTERM)
            if daemon.wait(run.PATIENCE) != 0:
                sys.exit(f"the daemon ended with {daemon.returncode}:\n{(folder / 'log').read_text()[-4000:]}")
        except AssertionError as error:
            print(f"FAILED: {str(error)[:4000]}")
            sys.exit(1)
        finally:
            daemon.kill()
            daemon.wait()
            if guard:
                # It ends the service at the end of its input.
                guard.stdin.close()
                guard.wait()


def peak(pid):
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) >> 10


if __name__ == "__main__":
    main()
