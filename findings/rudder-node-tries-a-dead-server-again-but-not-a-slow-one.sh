#!/usr/bin/env bash
# @rudderstack/rudder-sdk-node 3.0.13 (npm), as its README has it. Needs node.
#
# A batch that is answered 503, or whose connection breaks, is tried again after 0.2, 0.4 and 0.8 seconds: all that is sent into a
# restart of two seconds is dropped. A server that answers later than the `timeout` gets the batch once, and it is dropped at once,
# with the error of a timeout, where a server under load is the likelier case of the two, and a closed connection in its place would
# have been tried again. `Retry-After` counts, up to 24.8 days (the most that a timer of Node holds): one
# of 30 days is a pause of no time, and all tries are over within a second.
#
# Seen: `503: 4 tries in 1.5 s, dropped; connection broken: 4 tries in 1.6 s, dropped; slower than timeout: 1 try in 0.0 s, dropped;
# Retry-After 2 seconds: 4 tries in 6.7 s, dropped; Retry-After 30 days: 4 tries in 0.0 s, dropped` (seconds vary a little)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @rudderstack/rudder-sdk-node@3.0.13 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import sdk from '@rudderstack/rudder-sdk-node'

const Client = sdk.default ?? sdk

async function run(name, answer, options = {}) {
  const times = []
  let failed = 0
  const server = http.createServer((request, response) => {
    times.push(Date.now())
    request.resume().on('end', () => answer(response))
  })
  await new Promise(listens => server.listen(0, '127.0.0.1', listens))
  const client = new Client('key', { dataPlaneUrl: `http://127.0.0.1:${server.address().port}`, logLevel: 'none',
    errorHandler: () => { failed += 1 }, ...options })
  client.track({ userId: 'u', event: 'an event' })
  await sleep(11_000)
  const dropped = failed === 1 && client.queue.length === 0
  server.close()
  server.closeAllConnections()
  return { name, tries: times.length, seconds: (times.at(-1) - times[0]) / 1000, dropped }
}

const refuse = after => response => response.writeHead(503, after ? { 'Retry-After': after } : {}).end()
const seen = await Promise.all([
  run('503', refuse()),
  run('connection broken', response => response.destroy()),
  run('slower than timeout', response => setTimeout(() => response.end('{}'), 3000), { timeout: 1000 }),
  run('Retry-After 2 seconds', refuse(2)),
  run('Retry-After 30 days', refuse(30 * 86_400)),
])
console.log(seen.map(({ name, tries, seconds, dropped }) => (
  `${name}: ${tries} ${tries === 1 ? 'try' : 'tries'} in ${seconds.toFixed(1)} s, ${dropped ? 'dropped' : 'kept'}`)).join('; '))
const [refused, broken, slow, two, days] = seen
const known = seen.every(each => each.dropped) && slow.tries === 1 && [refused, broken, two, days].every(each => each.tries === 4)
  && refused.seconds < 4 && broken.seconds < 4 && two.seconds > 5.9 && days.seconds < 2
process.exit(known ? 0 : 1)
JS
timeout 60 node finding.mjs 2>>log
