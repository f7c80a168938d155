#!/usr/bin/env bash
# confluent-kafka 2.16.1 (PyPI; librdkafka 2.16.0 comes with it; seen with 2.12.1 and 2.15.1, too).
#
# A request of `AdminClient` (here `describe_topics`) waits for its broker, as a rule the controller. While that one takes no
# connection (its port is closed, as in a restart), `reconnect.backoff.ms` and `reconnect.backoff.max.ms` count for nothing: each
# failed connection is a change of the broker's state, which wakes the request, which finds the broker without a connection and
# orders one at once. So the client connects thousands of times a second and keeps most of a processor busy, until the request's
# timeout is over; a program that asks again does so for as long as the broker is away. `list_topics`, which any broker answers,
# does not. Where all brokers of a cluster are away it is the same up to 2.15.1; 2.16.0 forgets them then, and keeps its pauses.
#
# The cluster is a socket that answers ApiVersions and Metadata: itself, and a controller at a port where nobody listens.
#
# Seen: `backoff 1000 ms: list_topics: 1 connections to the controller in 5 s; describe_topics: 31275 in 5 s, _TIMED_OUT, 3.3 s of
# processor time`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet confluent-kafka==2.16.1
cat >finding.py <<'PYTHON'
import json, os, socket, struct, threading, time
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

listener = socket.create_server(("127.0.0.1", 0))
# Bound and not listening: connections are refused, and nobody else takes the port.
closed = socket.socket()
closed.bind(("127.0.0.1", 0))


def broker(node, port):
    host = b"127.0.0.1"
    return struct.pack(">ih", node, len(host)) + host + struct.pack(">ih", port, -1)


brokers = broker(1, listener.getsockname()[1]) + broker(2, closed.getsockname()[1])
answers = {
    # ApiVersions: itself up to version 3, Metadata in version 1.
    (18, 3): struct.pack(">hbhhhbhhhbib", 0, 3, 18, 0, 3, 0, 3, 1, 1, 0, 0, 0),
    # Metadata: two brokers, the second is the controller; no topics.
    (3, 1): struct.pack(">i", 2) + brokers + struct.pack(">ii", 2, 0),
}


def serve(connection):
    with connection, connection.makefile("rb") as stream:
        while head := stream.read(12):
            size, api, version, correlation = struct.unpack(">ihhi", head)
            stream.read(size - 8)
            answer = answers[api, version]
            connection.sendall(struct.pack(">ii", 4 + len(answer), correlation) + answer)


def accept():
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
connects = {}
settings = {
    "bootstrap.servers": f"127.0.0.1:{listener.getsockname()[1]}",
    "log_level": 2,
    "reconnect.backoff.ms": 1000,
    "reconnect.backoff.max.ms": 1000,
    "statistics.interval.ms": 200,
    "stats_cb": lambda text: connects.update((each["nodeid"], each["connects"]) for each in json.loads(text)["brokers"].values()),
}
admin = AdminClient(settings)


def during(ask):
    """Connections to the controller, and processor time, in five seconds of asking."""
    admin.poll(0.5)
    before, processor, until = connects.get(2, 0), time.process_time(), time.monotonic() + 5
    answer = None
    while time.monotonic() < until:
        answer = ask() or answer
        admin.poll(0.2)
    admin.poll(0.5)
    return connects[2] - before, time.process_time() - processor, answer


def listed():
    admin.list_topics(timeout=1)


def described():
    try:
        list(asked.values())[0].result(0)
    except KafkaException as error:
        return error.args[0].name()
    except TimeoutError:
        return None


listed()
calm, _, _ = during(listed)
asked = admin.describe_topics(TopicCollection(["events"]), request_timeout=4.5)
wild, processor, error = during(described)
print(f"backoff 1000 ms: list_topics: {calm} connections to the controller in 5 s; describe_topics: {wild} in 5 s, {error}, "
      f"{processor:.1f} s of processor time", flush=True)
os._exit(0 if calm <= 6 and wild > 1000 and error == "_TIMED_OUT" else 1)
PYTHON
timeout 60 env/bin/python -W ignore finding.py
