#!/usr/bin/env bash
# confluent-kafka 2.12.1 (PyPI; librdkafka 2.12.1 with it) and a broker of Kafka 4.1.1 (classic protocol), a topic with four
# partitions, `partition.assignment.strategy=cooperative-sticky` and static members (`group.instance.id`). Needs java 17 and mvn.
#
# A cooperative rebalance moves a partition in two rounds: in the first its member is told to give it up, and in the second, which
# that member asks for, another one is given it. A static member that is gone between the two and comes back under its name (a
# worker that is killed right after another one was added) joins a group that is stable: the coordinator gives it what the first
# round left to it, without a rebalance. It does not know of a second round, and nobody else asks for one: the partitions in
# between have no reader, the group says Stable, and the lag of the members that there are is 0. It lasts until the group changes
# for another reason.
#
# Seen: `Stable, a: [2, 3], b: []; nobody reads [0, 1] after 30 s; after a member came and went: nobody reads []`
set -euo pipefail

folder=$(mktemp -d)
broker=''
trap 'kill -9 $broker 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>kafka</artifactId><version>1</version>
<packaging>pom</packaging><dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>4.1.1</version></dependency></dependencies></project>
XML
mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=libs
python3 -m venv env
env/bin/pip install --quiet confluent-kafka==2.12.1

kafka=(java -Xmx512m -XX:+UseSerialGC -cp 'libs/*')
cat >1.properties <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:28320
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:28321,CONTROLLER://127.0.0.1:28320
advertised.listeners=PLAINTEXT://127.0.0.1:28321
log.dirs=$folder/logs
offsets.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
PROPERTIES
"${kafka[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c 1.properties >>log 2>&1
"${kafka[@]}" kafka.Kafka 1.properties >>log 2>&1 &
broker=$!

cat >group.py <<'PYTHON'
import os, threading, time
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic

brokers = {"bootstrap.servers": "127.0.0.1:28321"}
admin = AdminClient(brokers)
deadline = time.monotonic() + 90
while not admin.list_topics(timeout=10).brokers:
    assert time.monotonic() < deadline, "the broker does not start"
admin.create_topics([NewTopic("events", 4, 1)])["events"].result(30)


class Member:
    def __init__(self, name, halts=False):
        self.given, self.owned, self.halts, self.halted, self.stop = 0, set(), halts, threading.Event(), False
        settings = {"group.id": "group", "partition.assignment.strategy": "cooperative-sticky",
                    "heartbeat.interval.ms": 500, "auto.offset.reset": "earliest"}
        if name:
            settings["group.instance.id"] = name
        self.consumer = Consumer({**brokers, **settings})
        self.consumer.subscribe(["events"], on_assign=self.assigned, on_revoke=self.revoked)
        threading.Thread(target=self.poll, daemon=True).start()

    def poll(self):
        while not self.stop:
            self.consumer.poll(0.1)
        self.consumer.close()

    def assigned(self, consumer, partitions):
        self.owned |= {each.partition for each in partitions}
        consumer.incremental_assign(partitions)
        self.given += 1

    def revoked(self, consumer, partitions):
        if self.halts:
            # As one that is killed here: it never goes on.
            self.halted.set()
            time.sleep(3600)
        self.owned -= {each.partition for each in partitions}
        consumer.incremental_unassign(partitions)


def until(what, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


first = Member("a", halts=True)
until("a has all", lambda: first.owned == {0, 1, 2, 3})
b = Member("b")
until("a is told to give some up", first.halted.is_set)
a = Member("a")
until("a is back", lambda: a.given)
time.sleep(30)
unread = lambda: sorted({0, 1, 2, 3} - a.owned - b.owned)
group = admin.describe_consumer_groups(["group"])["group"].result(30)
before = unread()
state = group.state.name.capitalize()
said = f"{state}, a: {sorted(a.owned)}, b: {sorted(b.owned)}; nobody reads {before} after 30 s"
guest = Member(None)
until("the guest is a member", lambda: guest.given)
guest.stop = True
until("all are read", lambda: not unread())
print(f"{said}; after a member came and went: nobody reads {unread()}", flush=True)
os._exit(0 if state == "Stable" and len(before) == 2 else 1)
PYTHON
timeout 240 env/bin/python group.py
