#!/usr/bin/env bash
# posthog-node 5.70.0 (npm), with a `host` of one's own (a proxy's, as its documentation advises). Needs node.
#
# Where no connection can be made, or it breaks, a batch is tried 4 times and then stays in the queue: it goes out with the next
# batch. Where a proxy answers 503 for the server behind it, the same batch is tried 4 times and dropped: the same outage costs
# nothing or everything by whether something in front of the server still answers. `Retry-After` with 429 is not looked at. And
# what is kept waits for another event: no timer sends it, however long the server is back, and a process that has nothing more to
# say ends with it. The error event is the same in both cases but for its name.
#
# Seen: `no port: PostHogFetchNetworkError; 5 s after it is well: 0, with a second event: first,second`, `broken: 4 tries,
# PostHogFetchNetworkError; 5 s after it is well: 0, with a second event: first,second`, `503: 4 tries, PostHogFetchHttpError; 5 s
# after it is well: 0, with a second event: second`, and the same for 429
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund posthog-node@5.70.0 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { gunzipSync } from 'node:zlib'
import { PostHog } from 'posthog-node'

async function run(name, answer) {
  const arrived = []
  let tries = 0
  let well = false
  const handle = async (request, response) => {
    const body = Buffer.concat(await request.toArray())
    if (!well) {
      tries += 1
      return answer(response)
    }
    const { batch } = JSON.parse(request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body)
    arrived.push(...batch.map(each => each.event))
    return response.end('{}')
  }
  let server = http.createServer(handle)
  const listen = port => new Promise(listens => server.listen(port, '127.0.0.1', listens))
  await listen(0)
  const { port } = server.address()
  if (!answer) await new Promise(closed => server.close(closed))
  const client = new PostHog('key', { host: `http://127.0.0.1:${port}`, flushInterval: 300, fetchRetryDelay: 300 })
  const errors = []
  client.on('error', error => errors.push(error.name))
  client.capture({ distinctId: 'user-1', event: 'first' })
  await sleep(5000)
  well = true
  if (!answer) {
    server = http.createServer(handle)
    await listen(port)
  }
  await sleep(5000)
  const alone = arrived.length
  client.capture({ distinctId: 'user-1', event: 'second' })
  await sleep(3000)
  await client.shutdown(5000)
  server.close()
  server.closeAllConnections()
  return `${name}: ${answer ? `${tries} tries, ` : ''}${errors}; 5 s after it is well: ${alone}, with a second event: ${arrived}`
}

const seen = await Promise.all([
  run('no port'),
  run('broken', response => response.destroy()),
  run('503', response => response.writeHead(503).end()),
  run('429', response => response.writeHead(429, { 'Retry-After': '5' }).end()),
])
console.log(seen.join('\n'))
const kept = '5 s after it is well: 0, with a second event: first,second'
const dropped = '5 s after it is well: 0, with a second event: second'
process.exit(seen.join() === [`no port: PostHogFetchNetworkError; ${kept}`, `broken: 4 tries, PostHogFetchNetworkError; ${kept}`,
  `503: 4 tries, PostHogFetchHttpError; ${dropped}`, `429: 4 tries, PostHogFetchHttpError; ${dropped}`].join() ? 0 : 1)
JS
timeout 60 node finding.mjs 2>>log
