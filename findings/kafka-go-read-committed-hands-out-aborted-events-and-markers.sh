#!/usr/bin/env bash
# github.com/segmentio/kafka-go v0.4.51 (Go module proxy), a broker of Kafka 4.1.1, a transactional producer of confluent-kafka
# 2.12.1 (PyPI). Needs go, java 17 and mvn.
#
# kafka-go's documentation of `ReaderConfig.IsolationLevel` says that with `ReadCommitted` "only non-transactional and committed
# records are visible". The broker's part is to stop at the last stable offset and to name the aborted transactions; to leave
# their records out is the client's part, and kafka-go reads that list and throws it away. So a Reader with `ReadCommitted` hands
# out each event of an aborted transaction as any other, and, with each level, the control records that end transactions as
# messages of their own: a key of four bytes and a value of six that no producer wrote. Whoever counts on exactly-once gets each
# event that its producer gave up and sent again in another transaction twice, and a payload that no parser takes.
#
# Seen: `["kept-0" "kept-1" marker "aborted-0" "aborted-1" marker]`
set -euo pipefail

folder=$(mktemp -d)
broker=''
trap 'kill -9 $broker 2>/dev/null || true; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
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
controller.quorum.voters=1@127.0.0.1:29610
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:29611,CONTROLLER://127.0.0.1:29610
advertised.listeners=PLAINTEXT://127.0.0.1:29611
log.dirs=$folder/logs
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
PROPERTIES
"${kafka[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c 1.properties >>log 2>&1
"${kafka[@]}" kafka.Kafka 1.properties >>log 2>&1 &
broker=$!

cat >produce.py <<'PYTHON'
import time
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

brokers = {"bootstrap.servers": "127.0.0.1:29611", "log_level": 2}
admin = AdminClient(brokers)
deadline = time.monotonic() + 90
while True:
    try:
        admin.list_topics(timeout=5)
        break
    except Exception:
        assert time.monotonic() < deadline, "the broker does not start"
admin.create_topics([NewTopic("events", 1, 1)])["events"].result(30)
producer = Producer({**brokers, "transactional.id": "one"})
producer.init_transactions(60)
for name, end in ("kept", producer.commit_transaction), ("aborted", producer.abort_transaction):
    producer.begin_transaction()
    for n in range(2):
        producer.produce("events", f"{name}-{n}")
    producer.flush(30)
    end(30)
PYTHON
env/bin/python produce.py

mkdir reader
cd reader
export GOFLAGS=-mod=mod GOPATH="$folder/go"
cat >go.mod <<'MOD'
module finding

go 1.23

require github.com/segmentio/kafka-go v0.4.51
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/segmentio/kafka-go"
)

func main() {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{"127.0.0.1:29611"}, Topic: "events", IsolationLevel: kafka.ReadCommitted, MaxWait: 200 * time.Millisecond,
	})
	said := []string{}
	for {
		patience, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		message, err := reader.ReadMessage(patience)
		cancel()
		if err != nil {
			break
		}
		if len(message.Key) == 4 && len(message.Value) == 6 {
			said = append(said, "marker")
		} else {
			said = append(said, fmt.Sprintf("%q", message.Value))
		}
	}
	fmt.Println(said)
	if fmt.Sprint(said) != `["kept-0" "kept-1" marker "aborted-0" "aborted-1" marker]` {
		os.Exit(1)
	}
}
GO
go run .
