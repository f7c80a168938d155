#!/usr/bin/env bash
# @snowplow/node-tracker 4.8.0 (npm), as its documentation has it, `maxPostBytes` at its default of 40,000. Needs node.
#
# An event that a collector answers with 503 stays in the event store and is sent again, and `onRequestFailure` says so:
# `willRetry: true`. It says the same of an event above `maxPostBytes`, which never comes into the store: it is sent once, alone,
# and gone, whether answered 503 or met with a broken connection. A program that keeps what will not be tried again loses those.
# And `maxPostBytes` does not bound a request: events are added until it is reached, so that a collector (or a proxy) which takes
# just that answers 413 to a batch of small events; from then on the same batch stays at the head of the store, and nothing behind
# it is ever sent.
#
# Seen: `503 at first: willRetry of small true, of large true; arrived when it is well again: small,later; a collector that takes
# 40000 bytes: the largest body 41872, arrived 0 of 30, requests 6`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @snowplow/node-tracker@4.8.0 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { buildStructEvent, newTracker } from '@snowplow/node-tracker'

const maxPostBytes = 40_000

async function run(answer, options, act) {
  const arrived = []
  const sizes = []
  const server = http.createServer(async (request, response) => {
    const body = Buffer.concat(await request.toArray())
    const labels = JSON.parse(body).data.map(event => event.se_la)
    const status = answer(body.length)
    sizes.push(body.length)
    if (status === 200) arrived.push(...labels)
    response.writeHead(status).end()
  })
  await new Promise(listens => server.listen(0, '127.0.0.1', listens))
  const { port } = server.address()
  const tracker = newTracker({ namespace: 'finding', appId: 'finding', encodeBase64: false },
    { endpoint: '127.0.0.1', port, protocol: 'http', ...options })
  const track = (label, size) => {
    tracker.track(buildStructEvent({ category: 'shop', action: 'order', label, property: 'x'.repeat(size) }))
  }
  await act(track, tracker)
  server.close()
  server.closeAllConnections()
  return { arrived, sizes }
}

let status = 503
const told = {}
const onRequestFailure = ({ events, willRetry }) => events.forEach(event => { told[event.se_la] = willRetry })
const outage = await run(() => status, { bufferSize: 1, onRequestFailure }, async (track, tracker) => {
  track('small', 10)
  await sleep(500)
  track('large', maxPostBytes)
  await sleep(500)
  status = 200
  for (let n = 0; n < 5; n += 1) {
    await tracker.flush()
    await sleep(200)
  }
  track('later', 10)
  await sleep(1000)
})
const bounded = await run(size => (size <= maxPostBytes ? 200 : 413), { bufferSize: 30 }, async (track, tracker) => {
  for (let n = 0; n < 30; n += 1) track(String(n), 3000)
  for (let n = 0; n < 5; n += 1) {
    await sleep(300)
    await tracker.flush()
  }
})
const largest = Math.max(...bounded.sizes)
console.log(`503 at first: willRetry of small ${told.small}, of large ${told.large}; arrived when it is well again: `
  + `${outage.arrived}; a collector that takes ${maxPostBytes} bytes: the largest body ${largest}, arrived `
  + `${bounded.arrived.length} of 30, requests ${bounded.sizes.length}`)
const known = told.small && told.large && String(outage.arrived) === 'small,later' && largest > maxPostBytes
  && bounded.arrived.length === 0 && bounded.sizes.length > 4
process.exit(known ? 0 : 1)
JS
timeout 60 node finding.mjs 2>>log
