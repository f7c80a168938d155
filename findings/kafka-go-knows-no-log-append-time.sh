#!/usr/bin/env bash
# github.com/segmentio/kafka-go v0.4.51 (Go module proxy) and a broker of Kafka 4.1.1. Needs go, java 17 and mvn.
#
# In a topic with `message.timestamp.type=LogAppendTime` the time of an event is the broker's, so that no producer's clock counts.
# The broker does not rewrite each record for it: it sets a bit in the attributes of the batch and the batch's maximal timestamp,
# and the reader is to take that one for each record. kafka-go's Reader does not look at that bit: `Message.Time` is what the
# producer's clock said. The broker answers by its own time all the while: it says for `ReadOffset` that the events are of the last
# minute, and the Reader says of the same events that they are of 2020. Windows, lateness, and keys of an archive by `Time` come
# out otherwise than with any other client of that topic, and a producer can choose them, which the topic's setting forbids.
#
# Seen: `the broker has offset 0 for "a minute ago or later"; the Reader says [2020-09-13 12:26:40 2020-09-13 12:26:41]`
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
kafka=(java -Xmx512m -XX:+UseSerialGC -cp 'libs/*')
cat >1.properties <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:29620
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:29621,CONTROLLER://127.0.0.1:29620
advertised.listeners=PLAINTEXT://127.0.0.1:29621
log.dirs=$folder/logs
PROPERTIES
"${kafka[@]}" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ -c 1.properties >>log 2>&1
"${kafka[@]}" kafka.Kafka 1.properties >>log 2>&1 &
broker=$!

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
	"log"
	"time"

	"github.com/segmentio/kafka-go"
)

const broker = "127.0.0.1:29621"

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	all, cancel := context.WithTimeout(context.Background(), 150*time.Second)
	defer cancel()
	client := &kafka.Client{Addr: kafka.TCP(broker)}
	topic := kafka.TopicConfig{Topic: "events", NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: []kafka.ConfigEntry{
		{ConfigName: "message.timestamp.type", ConfigValue: "LogAppendTime"}}}
	for {
		made, err := client.CreateTopics(all, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
		if err == nil && made.Errors["events"] == nil {
			break
		}
		if all.Err() != nil {
			log.Fatal("the broker does not start: ", err, made)
		}
		time.Sleep(time.Second)
	}
	writer := &kafka.Writer{Addr: kafka.TCP(broker), Topic: "events", RequiredAcks: kafka.RequireAll, MaxAttempts: 60}
	then := time.Unix(1_600_000_000, 0)
	if err := writer.WriteMessages(all, kafka.Message{Value: []byte("a"), Time: then},
		kafka.Message{Value: []byte("b"), Time: then.Add(time.Second)}); err != nil {
		log.Fatal(err)
	}
	partition := must(kafka.DialLeader(all, "tcp", broker, "events", 0))
	since := must(partition.ReadOffset(time.Now().Add(-time.Minute)))
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker}, Topic: "events", MaxWait: 200 * time.Millisecond})
	times := []string{}
	for range 2 {
		times = append(times, must(reader.ReadMessage(all)).Time.UTC().Format(time.DateTime))
	}
	fmt.Printf("the broker has offset %d for \"a minute ago or later\"; the Reader says %v\n", since, times)
	if since != 0 || fmt.Sprint(times) != "[2020-09-13 12:26:40 2020-09-13 12:26:41]" {
		log.Fatal("it is otherwise now")
	}
}
GO
go run .
