#!/usr/bin/env bash
# github.com/cloudevents/sdk-go/v2 v2.16.2 (Go module proxy), NewClientHTTP and Send. Needs go.
#
# `IsUndelivered` is to say of a result that the event did not come as far as its recipient, `IsNACK` that the recipient did not
# acknowledge it. A port that nobody listens at, and a connection that breaks, are a NACK and not undelivered, as a 400 is: a
# program that asks `IsUndelivered` for what it is to send again loses all of an outage. Only an event that is not valid is
# undelivered. With retries on (`ContextWithRetriesExponentialBackoff`) the status is hidden too: `ResultAs` no longer finds the
# `*http.Result` that it finds without them, nor a network error. Those retries do not look at `Retry-After`, and take 404 and 413
# for something that passes, and 500 not.
#
# Seen: `no listener: NACK; broken: NACK; 400: NACK with status 400; 503: NACK with status 503; not valid: undelivered; with 3
# retries: no listener: NACK, requests 0; broken: NACK, requests 4; 400: NACK, requests 1; 404: NACK, requests 4; 413: NACK,
# requests 4; 500: NACK, requests 1; 503: NACK, requests 4; Retry-After heeded: false`
set -euo pipefail

folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"
export GOFLAGS=-mod=mod GOPATH="$folder/go"
cat >go.mod <<'MOD'
module finding

go 1.23

require github.com/cloudevents/sdk-go/v2 v2.16.2
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

const absent, broken, invalid = 0, 1, 2

func send(ctx context.Context, outcome int) (result error, requests int32) {
	var count atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		count.Add(1)
		if outcome == broken {
			connection, _, _ := answer.(http.Hijacker).Hijack()
			connection.Close()
			return
		}
		answer.Header().Set("Retry-After", "30")
		answer.WriteHeader(outcome)
	}))
	defer server.Close()
	if outcome == absent {
		server.Close()
	}
	client, err := cloudevents.NewClientHTTP(cloudevents.WithTarget(server.URL))
	if err != nil {
		panic(err)
	}
	event := cloudevents.NewEvent()
	event.SetSource("/finding")
	if outcome != invalid {
		event.SetType("finding")
	}
	result = client.Send(ctx, event)
	return result, count.Load()
}

func said(outcome int, result error) string {
	names := map[int]string{absent: "no listener", broken: "broken", invalid: "not valid"}
	said, named := names[outcome]
	if !named {
		said = fmt.Sprint(outcome)
	}
	if cloudevents.IsUndelivered(result) {
		said += ": undelivered"
	}
	if cloudevents.IsNACK(result) {
		said += ": NACK"
	}
	var status *cehttp.Result
	if cloudevents.ResultAs(result, &status) {
		said += fmt.Sprint(" with status ", status.StatusCode)
	}
	return said
}

func main() {
	start := time.Now()
	once, again := []string{}, []string{}
	for _, outcome := range []int{absent, broken, 400, 503, invalid} {
		result, _ := send(context.Background(), outcome)
		once = append(once, said(outcome, result))
	}
	retries := cloudevents.ContextWithRetriesExponentialBackoff(context.Background(), 100*time.Millisecond, 3)
	for _, outcome := range []int{absent, broken, 400, 404, 413, 500, 503} {
		result, requests := send(retries, outcome)
		var network net.Error
		again = append(again, fmt.Sprintf("%s, requests %d", said(outcome, result), requests))
		if cloudevents.ResultAs(result, &network) {
			again = append(again, "a network error is told")
		}
	}
	seen := strings.Join(once, "; ") + "; with 3 retries: " + strings.Join(again, "; ")
	fmt.Printf("%s; Retry-After heeded: %v\n", seen, time.Since(start) > 30*time.Second)
	if seen != os.Args[1] || time.Since(start) > 30*time.Second {
		fmt.Fprintln(os.Stderr, "it is otherwise now")
		os.Exit(1)
	}
}
GO
seen='no listener: NACK; broken: NACK; 400: NACK with status 400; 503: NACK with status 503; not valid: undelivered; '
seen+='with 3 retries: no listener: NACK, requests 0; broken: NACK, requests 4; 400: NACK, requests 1; 404: NACK, requests 4; '
seen+='413: NACK, requests 4; 500: NACK, requests 1; 503: NACK, requests 4'
go run . "$seen"
