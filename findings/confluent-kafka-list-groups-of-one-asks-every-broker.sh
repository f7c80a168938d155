#!/usr/bin/env bash
# confluent-kafka 2.16.1 (PyPI; the librdkafka that comes with it) and a cluster of two brokers of Kafka 4.1.1. Needs java 17 and mvn.
#
# `AdminClient.list_groups(group=NAME)` (deprecated in this version; the same call of librdkafka is `fetch_group_list` of Rust's
# rdkafka) asks for one group, and one broker knows it: its coordinator. librdkafka asks each broker of the cluster all the same and
# waits for all of them. Where one that has nothing to do with the group does not answer (here: it is stopped by a signal, so that
# its connections stay open), the call lasts for the whole timeout and ends with an error, though the coordinator answered within
# milliseconds; the group that it had is thrown away. `describe_consumer_groups` asks the coordinator alone and answers at once.
# Whoever watches members with `list_groups` is blind to all groups for as long as one broker hangs.
#
# Seen: `both brokers well: list_groups found 1 member; one stopped: list_groups: _PARTIAL after 5 s, describe_consumer_groups: 1
# member after 0 s`
set -euo pipefail

folder=$(mktemp -d)
first=''
second=''
trap 'kill -9 $first $second 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>kafka</artifactId><version>1</version>
<packaging>pom</packaging><dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>4.1.1</version></dependency></dependencies></project>
XML
mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=libs
python3 -m venv env
env/bin/pip install --quiet confluent-kafka==2.16.1

kafka=(java -Xmx400m -XX:+UseSerialGC -cp 'libs/*')
for node in 1 2; do
  cat >$node.properties <<PROPERTIES
process.roles=$([[ $node == 1 ]] && echo broker,controller || echo broker)
node.id=$node
controller.quorum.voters=1@127.0.0.1:29600
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:2960$node$([[ $node == 2 ]] || echo ,CONTROLLER://127.0.0.1:29600)
advertised.listeners=PLAINTEXT://127.0.0.1:2960$node
log.dirs=$folder/logs$node
broker.session.timeout.ms=120000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
PROPERTIES
  "${kafka[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c $node.properties >>log 2>&1
done
"${kafka[@]}" kafka.Kafka 1.properties >>log 2>&1 &
first=$!
"${kafka[@]}" kafka.Kafka 2.properties >>log 2>&1 &
second=$!

cat >finding.py <<'PYTHON'
import os, signal, sys, threading, time
from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

brokers = {"bootstrap.servers": "127.0.0.1:29601,127.0.0.1:29602", "log_level": 2}
processes = {1: int(sys.argv[1]), 2: int(sys.argv[2])}
admin = AdminClient(brokers)
deadline = time.monotonic() + 120
while True:
    try:
        if len(admin.list_topics(timeout=5).brokers) == 2:
            break
    except KafkaException:
        pass
    assert time.monotonic() < deadline, "the brokers do not start"
    time.sleep(0.5)
admin.create_topics([NewTopic("events", 1, 1)])["events"].result(30)
assigned = threading.Event()


def member():
    consumer = Consumer({**brokers, "group.id": "group"})
    consumer.subscribe(["events"], on_assign=lambda *_: assigned.set())
    while True:
        consumer.poll(0.2)


def timed(call):
    began = time.monotonic()
    try:
        answer = call()
    except KafkaException as error:
        answer = error.args[0].name()
    return answer, round(time.monotonic() - began)


def listed():
    return sum(len(group.members) for group in admin.list_groups(group="group", timeout=5))


def described():
    return admin.describe_consumer_groups(["group"], request_timeout=5)["group"].result(30)


threading.Thread(target=member, daemon=True).start()
assert assigned.wait(60), "the group does not form"
well, _ = timed(listed)
other = 3 - described().coordinator.id
os.kill(processes[other], signal.SIGSTOP)
time.sleep(1)
answer, seconds = timed(listed)
group, at_once = timed(described)
os.kill(processes[other], signal.SIGCONT)
members = len(group.members)
print(f"both brokers well: list_groups found {well} member; one stopped: list_groups: {answer} after {seconds} s, "
      f"describe_consumer_groups: {members} member after {at_once} s", flush=True)
os._exit(0 if (well, answer, members, at_once) == (1, "_PARTIAL", 1, at_once) and seconds >= 5 > at_once + 2 else 1)
PYTHON
timeout 200 env/bin/python -W ignore finding.py "$first" "$second"
