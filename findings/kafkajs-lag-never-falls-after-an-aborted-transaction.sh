#!/usr/bin/env bash
# kafkajs 2.2.4 (npm), beside kafka-python 3.0.12 (PyPI), and a broker of Kafka 4.1.1. Needs node, java 17 and mvn.
#
# A consumer of a topic that transactions write to passes over aborted events and the markers at a transaction's end; its position
# is behind them then. kafkajs commits that position only with the next event that it hands out: where the last transactions of a
# partition were aborted, the committed offset stays in front of all that they wrote, however long the consumer runs and also when
# it is started anew, and each start fetches that tail again. Lag that is counted as ever (end less committed) says a thousand
# events for a group that has read all there is, until somebody commits a transaction in that partition: an alarm without a cause,
# a scaler that adds workers, a drain that waits for 0. kafka-python in the same place commits the end.
#
# Seen: `handed out: 10; lag of kafkajs: 1002, started anew: 1002, of kafka-python: 0`
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
npm install --silent --no-audit --no-fund kafkajs@2.2.4 >>log 2>&1
python3 -m venv env
env/bin/pip install --quiet kafka-python==3.0.12

kafka=(java -Xmx512m -XX:+UseSerialGC -cp 'libs/*')
cat >1.properties <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:29630
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:29631,CONTROLLER://127.0.0.1:29630
advertised.listeners=PLAINTEXT://127.0.0.1:29631
log.dirs=$folder/logs
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
PROPERTIES
"${kafka[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c 1.properties >>log 2>&1
"${kafka[@]}" kafka.Kafka 1.properties >>log 2>&1 &
broker=$!

cat >python.py <<'PYTHON'
from kafka import KafkaConsumer

consumer = KafkaConsumer("events", bootstrap_servers="127.0.0.1:29631", group_id="python", isolation_level="read_committed",
                         auto_offset_reset="earliest", consumer_timeout_ms=10_000)
list(consumer)
consumer.close()
PYTHON
cat >finding.mjs <<'JS'
import { execFileSync } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import kafkajs from 'kafkajs'

const settings = { brokers: ['127.0.0.1:29631'], logLevel: kafkajs.logLevel.NOTHING }
const kafka = new kafkajs.Kafka({ ...settings, retry: { retries: 20, maxRetryTime: 5000 } })
const admin = kafka.admin()
await admin.connect()
await admin.createTopics({ topics: [{ topic: 'events', numPartitions: 1 }] })
const producer = kafka.producer({ transactionalId: 'one', idempotent: true, maxInFlightRequests: 1 })
await producer.connect()
const write = async (events, end) => {
  const transaction = await producer.transaction()
  await transaction.send({ topic: 'events', messages: Array.from({ length: events }, (_, n) => ({ value: `${end} ${n}` })) })
  await transaction[end]()
}
await write(10, 'commit')

const lag = async group => {
  const [{ high }] = await admin.fetchTopicOffsets('events')
  const [{ partitions: [{ offset }] }] = await admin.fetchOffsets({ groupId: group, topics: ['events'] })
  return high - offset
}
let handed = 0
const start = async () => {
  const consumer = kafka.consumer({ groupId: 'js', readUncommitted: false })
  await consumer.connect()
  await consumer.subscribe({ topic: 'events', fromBeginning: true })
  await consumer.run({ eachMessage: async () => { handed += 1 } })
  return consumer
}
let consumer = await start()
for (let tries = 0; handed < 10 && tries < 60; tries += 1) await sleep(500)
await write(1000, 'abort')
await sleep(15000)
await consumer.disconnect()
const first = await lag('js')
consumer = await start()
await sleep(15000)
await consumer.disconnect()
const second = await lag('js')
execFileSync('env/bin/python', ['python.py'])
const python = await lag('python')
console.log(`handed out: ${handed}; lag of kafkajs: ${first}, started anew: ${second}, of kafka-python: ${python}`)
process.exit(handed === 10 && first === 1002 && second === 1002 && python === 0 ? 0 : 1)
JS
node finding.mjs
