#!/usr/bin/env bash
# A broker of Kafka 4.1.1; confluent-kafka 2.16.1 (PyPI) reads with `group.protocol=consumer`, aiokafka 0.14.0 and kafka-python
# 3.0.12 (PyPI) look at its group. Needs java 17 and mvn.
#
# Groups of the protocol of KIP-848 are listed by ListGroups to whoever asks. DescribeGroups, which older clients follow it up with,
# says of each of them that it is Dead and has no members, while its members read and commit. Up to version 5 of that request the
# broker's answer has no error (6 has one: "not a classic group"), so that aiokafka's `describe_consumer_groups` says, as of a fact,
# error 0, Dead, no members: of the same group that its `list_consumer_groups` has just named, and of whose offsets
# `list_consumer_group_offsets` has the latest. Whoever moved consumers to the new protocol and looks at groups with such a client
# (an exporter of metrics, a check before offsets are reset or a group is deleted) sees each of them die at that moment.
#
# Seen: `read 100; aiokafka: listed, offset 100, error 0, Dead, 0 members; kafka-python: Dead, 0 members, error "not a classic group";
# confluent-kafka: STABLE, 1 member`
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
env/bin/pip install --quiet confluent-kafka==2.16.1 aiokafka==0.14.0 kafka-python==3.0.12

kafka=(java -Xmx512m -XX:+UseSerialGC -cp 'libs/*')
cat >1.properties <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:29690
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:29691,CONTROLLER://127.0.0.1:29690
advertised.listeners=PLAINTEXT://127.0.0.1:29691
log.dirs=$folder/logs
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
PROPERTIES
"${kafka[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c 1.properties >>log 2>&1
"${kafka[@]}" kafka.Kafka 1.properties >>log 2>&1 &
broker=$!

cat >finding.py <<'PYTHON'
import asyncio, os, threading, time
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaAdminClient

address = "127.0.0.1:29691"
brokers = {"bootstrap.servers": address, "log_level": 2}
admin = AdminClient(brokers)
deadline = time.monotonic() + 90
while True:
    try:
        admin.list_topics(timeout=5)
        break
    except Exception:
        assert time.monotonic() < deadline, "the broker does not start"
admin.create_topics([NewTopic("events", 1, 1)])["events"].result(30)
producer = Producer(brokers)
for n in range(100):
    producer.produce("events", b"%d" % n)
producer.flush(30)
read = 0


def reader():
    global read
    consumer = Consumer({**brokers, "group.id": "group", "group.protocol": "consumer", "auto.offset.reset": "earliest",
                         "auto.commit.interval.ms": 500})
    consumer.subscribe(["events"])
    while True:
        message = consumer.poll(0.2)
        read += bool(message and not message.error())


async def look():
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    listed = "group" in [name for name, _ in await client.list_consumer_groups()]
    [offset] = (await client.list_consumer_group_offsets("group")).values()
    [[(error, _, state, _, _, members)]] = [answer.groups for answer in await client.describe_consumer_groups(["group"])]
    await client.close()
    return f"{'listed' if listed else 'not listed'}, offset {offset.offset}, error {error}, {state}, {len(members)} members"


threading.Thread(target=reader, daemon=True).start()
deadline = time.monotonic() + 60
while read < 100:
    assert time.monotonic() < deadline, "nothing is read"
    time.sleep(0.5)
time.sleep(5)
aio = asyncio.run(look())
python = KafkaAdminClient(bootstrap_servers=address).describe_groups(["group"])["group"]
refused = "not a classic group" in str(python["error"])
confluent = admin.describe_consumer_groups(["group"])["group"].result(30)
print(f"read {read}; aiokafka: {aio}; kafka-python: {python['group_state']}, {len(python['members'])} members, error "
      f"\"{'not a classic group' if refused else python['error']}\"; confluent-kafka: {confluent.state.name}, "
      f"{len(confluent.members)} member", flush=True)
known = aio == "listed, offset 100, error 0, Dead, 0 members" and python["group_state"] == "Dead" and refused
os._exit(0 if known and len(confluent.members) == 1 and confluent.state.name == "STABLE" else 1)
PYTHON
timeout 200 env/bin/python finding.py
