#!/usr/bin/env python3
"""Runs real senders against the built daemon by the lines of docs/clients.md, and counts what is lost and what is doubled.

    run.py --binary target/release/ingestd [SENDER…]     senders or groups: light (the default), all

Each sender is given numbered events while the daemon (1) takes them, (2) answers 503 for 5 s, since its log is full, (3) is killed
and started again 2 s later, and (4) gets one that is wrong among others. Then the sender is stopped in order, and its numbers are
compared with those in the archive and in the dead letters.

Packages go below --root (by default target/senders of this checkout). --record DIR writes down requests and answers. Exits with 1
when something is lost or doubled that docs/clients.md does not say, with 77 when none of the senders can be had.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import partial
from daemon import Daemon, wait_for
from packages import Unavailable
from relay import Relay
from senders import CHECKOUT, GROUPS, SENDERS, Run

UNAVAILABLE = 77
# How long the daemon answers 503, and how long it is away.
REFUSES, AWAY = 5, 2
# A sender has caught up by then: the longest pause between two attempts that one of them makes is some 30 s.
CAUGHT_UP = 120
NUMBER = re.compile(r"number-\d{6}")


class Feed:
    """Gives a sender its events."""

    def __init__(self, sender, daemon, running):
        self.sender, self.daemon, self.running = sender, daemon, running
        self.good, self.wrong, self.lost = set(), set(), set()

    def event(self, wrong):
        number = f"number-{len(self.good) + len(self.wrong):06}"
        (self.wrong if wrong else self.good).add(number)
        own_id = str(uuid.uuid4())
        event = {"type": "order_placed", "event_id": own_id, "client_id": "client-1", "number": number}
        if wrong:
            del event["type"]
        return {"number": number, "id": own_id, "wrong": wrong, "event": event}

    def give(self, wrong=None, lost=False):
        """One chunk; `wrong` is the place of a wrong event in it."""
        chunk = [self.event(at == wrong) for at in range(self.sender.chunk)]
        if lost:
            self.lost.update(given["number"] for given in chunk)
        self.running.give(chunk)

    def go_on(self, seconds, lost=False):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.give(lost=lost)
            time.sleep(self.sender.every)

    def catch_up(self, all_sent=False):
        """Until all that is not lost stands in the archive, and what is wrong where it belongs. A sender that lays aside what it
        cannot send is done with that."""
        if self.sender.after and not all_sent:
            return self.running.settle()
        wanted = self.good - self.lost

        def ask():
            kept = self.running.refused() if self.sender.wrong == "told" else numbers(self.daemon.letters())
            return wanted <= set(numbers(self.daemon.archived())) and self.wrong <= set(kept)

        try:
            wait_for("", ask, CAUGHT_UP, every=0.3)
        except AssertionError:
            # What is missing is counted in the end.
            pass


def numbers(texts):
    """How often each number stands there; several times in one text is once."""
    return Counter(number for text in texts for number in set(NUMBER.findall(text)))


def play(sender, daemon, relay, running):
    """The phases. A sender that loses what it is given while it is refused, or alone, is left alone at the borders, so that this is
    exactly what is lost; others are busy at each border."""
    feed, loses = Feed(sender, daemon, running), sender.loses

    def border():
        if loses:
            running.settle()
            feed.catch_up()

    feed.go_on(1)
    border()
    daemon.fill(True)
    feed.go_on(REFUSES, lost="full" in loses)
    if loses:
        running.settle()
    refusals = daemon.metrics("ingestd_requests_total", status="503")
    daemon.fill(False)
    feed.go_on(1)
    border()
    feed.catch_up()
    if not loses:
        feed.go_on(0.5)
    daemon.kill()
    if relay:
        relay.close()
    feed.go_on(AWAY, lost="away" in loses)
    if loses:
        running.settle()
    daemon.start()
    if not loses:
        feed.go_on(0.3)
    daemon.ready()
    if relay:
        relay.open()
    feed.go_on(0.5)
    border()
    feed.give(wrong=sender.chunk // 2)
    feed.go_on(0.5)
    border()
    feed.catch_up()
    running.finish()
    return feed, refusals


def judge(sender, feed, refusals, archived, letters, refused):
    """Numbers, and what differs from what the sender's entry promises."""
    lost = feed.good - set(archived)
    doubled = sum(count - 1 for count in archived.values())
    faults = []
    if not refusals:
        faults.append("it met no 503")
    if lost != feed.lost:
        unlike = sorted(lost ^ feed.lost)
        faults.append(f"{len(lost)} are lost, {len(feed.lost)} were expected to be; these differ: {' '.join(unlike)}")
    if doubled > (0 if sender.loses else sender.in_flight):
        faults.append(f"{doubled} stand twice, where at most {sender.in_flight} were under way when the daemon was killed")
    if stray := set(letters) - feed.wrong:
        faults.append(f"dead letters of good events: {sorted(stray)[:10]}")
    if within := feed.wrong & set(archived):
        faults.append(f"wrong, and in the archive: {sorted(within)}")
    where = {"told": Counter(refused), "letter": letters}[sender.wrong]
    if where != Counter(feed.wrong):
        faults.append(f"the wrong one is {sender.wrong} {dict(where)} times")
    return {
        "sender": sender.name,
        "version": sender.version,
        "given": len(feed.good),
        "lost": len(lost),
        "lost_as_said": len(feed.lost),
        "doubled": doubled,
        "wrong": sender.wrong,
        "refusals": int(refusals),
        "faults": faults,
    }


def by_halves(sender, folder, root):
    (folder / "partial").mkdir()
    chunk = Feed(sender, None, None)
    return partial.check(sender, Run(sender.name, folder / "partial", root, ""), [chunk.event(at == partial.WRONG) for at in range(5)])


def run(sender, binary, root, record):
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{sender.name}-", ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        sources = "\n".join((CHECKOUT / f"packaging/sources/{name}.toml").read_text() for name in sender.sources)
        daemon = Daemon(binary, folder, sender.settings, sources)
        relay = Relay(daemon.http, record / f"{sender.name}.txt") if record else None
        running = None
        (folder / "sender").mkdir()
        surroundings = Run(sender.name, folder / "sender", root, relay.address if relay else daemon.http)
        # A page's origin is known when its port is.
        daemon.settings = {key: str(value).replace("ORIGIN", surroundings.origin) for key, value in daemon.settings.items()}
        try:
            faults = by_halves(sender, folder, root) if sender.lenient else []
            daemon.start()
            daemon.ready()
            if relay:
                relay.open()
            running = sender.start(surroundings)
            feed, refusals = play(sender, daemon, relay, running)
            if sender.after:
                sender.after(surroundings)
            # A stop leaves to the next start what is not read yet.
            feed.catch_up(all_sent=True)
            daemon.stop()
            result = judge(sender, feed, refusals, numbers(daemon.archived()), numbers(daemon.letters()), running.refused())
            result["faults"] += faults
        except Unavailable as why:
            result = {"sender": sender.name, "version": sender.version, "not_run": str(why), "faults": []}
        except Exception as error:
            said = running.said() if running else ""
            result = {"sender": sender.name, "version": sender.version, "faults": [f"{error!r}\n{traceback.format_exc()}{said}{daemon.log()}"]}
        finally:
            if running:
                running.kill()
            daemon.kill()
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def row(result):
    name = f"{result['sender']} {result['version']}"
    if why := result.get("not_run"):
        return f"{name:32} not run: {why}"
    told = {key: result.get(key, "?") for key in ("given", "lost", "lost_as_said", "doubled", "wrong", "refusals", "seconds")}
    line = "{given:>6} given {lost:>5} lost (said: {lost_as_said}) {doubled:>4} doubled, wrong: {wrong}, 503: {refusals}, {seconds} s".format(**told)
    return f"{name:32} {line}" + "".join(f"\n    FAILED: {fault}" for fault in result["faults"])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binary", default="target/release/ingestd")
    options.add_argument("--root", type=Path, default=CHECKOUT / "target/senders")
    options.add_argument("--record", type=Path, metavar="DIR", help="write requests and answers there")
    options.add_argument("--json", action="store_true", help="print a JSON document at the end")
    options.add_argument("--jobs", type=int, default=4, help="senders that run at the same time, each with a daemon of its own")
    options.add_argument("senders", nargs="*", default=["light"])
    chosen = options.parse_args()
    known = {sender.name: sender for sender in SENDERS}
    names = list(dict.fromkeys(name for group in chosen.senders for name in GROUPS.get(group, [group])))
    if unknown := [name for name in names if name not in known]:
        options.error(f"unknown: {', '.join(unknown)}; there are {', '.join([*GROUPS, *known])}")
    if chosen.record:
        chosen.record.mkdir(parents=True, exist_ok=True)
    binary, root, printing = os.path.abspath(chosen.binary), chosen.root.resolve(), threading.Lock()

    def one(name):
        result = run(known[name], binary, root, chosen.record)
        with printing:
            print(row(result), flush=True)
        return result

    with ThreadPoolExecutor(chosen.jobs) as pool:
        results = list(pool.map(one, names))
    if chosen.json:
        print(json.dumps(results, indent=1))
    failed, absent = sum(bool(result["faults"]) for result in results), sum("not_run" in result for result in results)
    print(f"{len(results) - failed - absent} passed, {failed} failed, {absent} not run")
    sys.exit(1 if failed else UNAVAILABLE if absent == len(results) else 0)


if __name__ == "__main__":
    main()
