#!/usr/bin/env bash
# confluent-kafka 2.16.1 (PyPI; the librdkafka that comes with it), beside kafka-python 3.0.12 (PyPI), and a broker of Kafka 4.1.1.
# Needs java 17 and mvn.
#
# Since Kafka 4.0 a broker refuses an event whose timestamp is more than an hour ahead of its clock
# (`message.timestamp.after.max.ms`; there was no such limit by default before). It refuses the whole batch that the event came in,
# so that one device with a wrong clock costs the events of all the others that were sent in the same milliseconds. Its answer
# names the one record that is bad, and kafka-python passes that on: one InvalidTimestampError, and for the neighbours that their
# batch was refused. librdkafka's delivery reports say INVALID_TIMESTAMP, an error that is not worth another try, of each event of
# the batch, though 99 of 100 have a right timestamp: an application that sets aside what its delivery report calls bad sets aside
# good events, and cannot tell which to correct. The batch is cut by time and load, so that the same events pass on another day.
#
# Seen: `confluent-kafka: 100 x INVALID_TIMESTAMP; kafka-python: 99 x KafkaError, 1 x InvalidTimestampError; stored: 0 of 200`
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
env/bin/pip install --quiet confluent-kafka==2.16.1 kafka-python==3.0.12

kafka=(java -Xmx512m -XX:+UseSerialGC -cp 'libs/*')
cat >1.properties <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:29640
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:29641,CONTROLLER://127.0.0.1:29640
advertised.listeners=PLAINTEXT://127.0.0.1:29641
log.dirs=$folder/logs
PROPERTIES
"${kafka[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c 1.properties >>log 2>&1
"${kafka[@]}" kafka.Kafka 1.properties >>log 2>&1 &
broker=$!

cat >finding.py <<'PYTHON'
import time
from collections import Counter
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from kafka import KafkaProducer

address = "127.0.0.1:29641"
admin = AdminClient({"bootstrap.servers": address, "log_level": 2})
deadline = time.monotonic() + 90
while True:
    try:
        admin.list_topics(timeout=5)
        break
    except Exception:
        assert time.monotonic() < deadline, "the broker does not start"
admin.create_topics([NewTopic("events", 1, 1)])["events"].result(30)

now = int(time.time() * 1000)
events = [(b"event %d" % n, now + (2 * 3600 * 1000 if n == 57 else 0)) for n in range(100)]

confluent = Counter()
producer = Producer({"bootstrap.servers": address, "linger.ms": 2000, "log_level": 2})
for value, timestamp in events:
    report = lambda error, message: confluent.update([error.name() if error else "delivered"])
    producer.produce("events", value, timestamp=timestamp, on_delivery=report)
producer.flush(30)

python = Counter()
producer = KafkaProducer(bootstrap_servers=address, linger_ms=2000)
futures = [producer.send("events", value, timestamp_ms=timestamp) for value, timestamp in events]
producer.flush(30)
for future in futures:
    python[type(future.exception).__name__ if future.failed() else "delivered"] += 1
producer.close()

partition = TopicPartition("events", 0)
end = admin.list_offsets({partition: OffsetSpec.latest()})[partition].result(30).offset
counts = lambda each: ", ".join(f"{count} x {name}" for name, count in each.most_common())
print(f"confluent-kafka: {counts(confluent)}; kafka-python: {counts(python)}; stored: {end} of 200")
assert confluent == {"INVALID_TIMESTAMP": 100}, "librdkafka tells them apart now"
assert python == {"KafkaError": 99, "InvalidTimestampError": 1} and end == 0, "it is otherwise now"
PYTHON
env/bin/python finding.py
