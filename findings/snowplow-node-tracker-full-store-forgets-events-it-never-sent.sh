#!/usr/bin/env bash
# @snowplow/node-tracker 4.8.0 (npm), its own event store in memory, of 1000 events as by default. Needs node.
#
# After an outage the store is full, and each new event pushes out the oldest, which one expects: those are lost. What one does not
# expect: the oldest are the ones that the request under way holds, and when that succeeds, as many events as it held are taken
# from the head of the store, which are others by now. For each event that comes in while the request runs, one that was never
# sent is deleted, with the collector well again, all calls successful and no message; what one thinks was pushed out arrived.
# There is a gap in the middle of the outage that nothing but the events' own numbers shows.
#
# Seen: `1000 events wait, 100 more come while the first request runs: requests [0-219, 320-539, 540-759, 760-979, 980-1099], never
# sent 100: 220-319`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @snowplow/node-tracker@4.8.0 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { buildStructEvent, newTracker } from '@snowplow/node-tracker'

const arrived = []
let well = false
const server = http.createServer(async (request, response) => {
  const events = JSON.parse(Buffer.concat(await request.toArray())).data.map(event => Number(event.se_la))
  if (well) {
    arrived.push(events)
    await sleep(arrived.length === 1 ? 1000 : 0)
  }
  response.writeHead(well ? 200 : 503).end()
})
await new Promise(listens => server.listen(0, '127.0.0.1', listens))
const tracker = newTracker({ namespace: 'finding', appId: 'finding', encodeBase64: false },
  { endpoint: '127.0.0.1', port: server.address().port, protocol: 'http' })
const track = n => tracker.track(buildStructEvent({ category: 'shop', action: 'order', label: String(n) }))
for (let n = 0; n < 1000; n += 1) track(n)
await sleep(2000)
well = true
const flushed = tracker.flush()
await sleep(500)
for (let n = 1000; n < 1100; n += 1) track(n)
await flushed
for (let n = 0; n < 5; n += 1) {
  await tracker.flush()
  await sleep(200)
}
server.close()
server.closeAllConnections()
const came = new Set(arrived.flat())
const never = [...Array(1100).keys()].filter(n => !came.has(n))
const requests = arrived.map(events => `${events[0]}-${events.at(-1)}`)
console.log(`1000 events wait, 100 more come while the first request runs: requests [${requests.join(', ')}], never sent `
  + `${never.length}: ${never[0]}-${never.at(-1)}`)
const first = arrived[0].length
process.exit(never.length === 100 && never[0] === first && never.at(-1) === first + 99 ? 0 : 1)
JS
timeout 60 node finding.mjs 2>>log
