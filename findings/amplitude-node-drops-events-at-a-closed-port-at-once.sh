#!/usr/bin/env bash
# @amplitude/analytics-node 1.5.73 (npm), with a `serverUrl` of one's own (a proxy's or a collector's). Needs node.
#
# A batch that is answered 503 is sent again, up to 12 times, and arrives when the server is well again after some seconds. A batch
# for which no connection is made, or whose connection ends without an answer, is dropped at once: it is resolved with the code 0,
# which who does not wait for each event's promise never sees, and `flushMaxRetries` has no part in it. So a restart of a server
# loses all that falls into it, and the same restart behind a proxy loses nothing.
#
# Seen: `503 for 3 s: told 200, arrived 1; no port for 3 s: told 0, arrived 0; broken for 3 s: told 0, arrived 0`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @amplitude/analytics-node@1.5.73 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import amplitude from '@amplitude/analytics-node'

async function run(name, answer) {
  const arrived = []
  let well = false
  const handle = async (request, response) => {
    const { events } = JSON.parse(Buffer.concat(await request.toArray()))
    if (!well) return answer(response)
    arrived.push(...events.map(event => event.event_type))
    return response.end('{"code":200}')
  }
  let server = http.createServer(handle)
  const listen = port => new Promise(listens => server.listen(port, '127.0.0.1', listens))
  await listen(0)
  const { port } = server.address()
  if (!answer) await new Promise(closed => server.close(closed))
  const client = amplitude.createInstance()
  const serverUrl = `http://127.0.0.1:${port}/2/httpapi`
  await client.init('key', { serverUrl, flushIntervalMillis: 100, logLevel: 0 }).promise
  const outcome = client.track('an event', {}, { user_id: 'user-1' }).promise
  await sleep(3000)
  well = true
  if (!answer) {
    server = http.createServer(handle)
    await listen(port)
  }
  const { code } = await outcome
  await sleep(7000)
  server.close()
  server.closeAllConnections()
  return `${name} for 3 s: told ${code}, arrived ${arrived.length}`
}

const seen = await Promise.all([
  run('503', response => response.writeHead(503).end()),
  run('no port'),
  run('broken', response => response.destroy()),
])
console.log(seen.join('; '))
const known = ['503 for 3 s: told 200, arrived 1', 'no port for 3 s: told 0, arrived 0', 'broken for 3 s: told 0, arrived 0']
process.exit(seen.join() === known.join() ? 0 : 1)
JS
timeout 60 node finding.mjs 2>>log
