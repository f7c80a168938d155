#!/usr/bin/env bash
# @amplitude/analytics-node 1.5.73 (npm), with a `serverUrl` of one's own (a proxy's or a collector's). Needs node. Takes a minute.
#
# Where the body of an answer is JSON, its status counts for nothing: whether the batch arrived is read from a member `code` in
# there. A server that stores a batch and answers 200 with `{}` or `{"status":"ok"}` gets it again, 12 times in all
# (`flushMaxRetries`), within a minute, and the program is told at the end that the event was rejected, with a 500 that nobody
# sent. The same server may answer `ok`, or nothing at all, and the event is delivered. The other way too: 503 with `{"code":200}`
# is a delivery, and a 400 that says why in JSON is sent 12 times.
#
# Seen: `200 {}: sent 12 times, told 500; 200 {"status":"ok"}: sent 12 times, told 500; 400 {"error":"no such key"}: sent 12 times,
# told 500; 200 ok: sent 1 times, told 200; 200 : sent 1 times, told 200; 503 {"code":200}: sent 1 times, told 200`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @amplitude/analytics-node@1.5.73 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import amplitude from '@amplitude/analytics-node'

async function run([status, answer]) {
  let sent = 0
  const server = http.createServer(async (request, response) => {
    const { events } = JSON.parse(Buffer.concat(await request.toArray()))
    sent += events.filter(event => event.insert_id === 'only').length
    response.writeHead(status).end(answer)
  })
  await new Promise(listens => server.listen(0, '127.0.0.1', listens))
  const client = amplitude.createInstance()
  const serverUrl = `http://127.0.0.1:${server.address().port}/2/httpapi`
  await client.init('key', { serverUrl, flushIntervalMillis: 100, logLevel: 0 }).promise
  const { code } = await client.track('an event', {}, { user_id: 'user-1', insert_id: 'only' }).promise
  server.close()
  return [`${status} ${answer}`, sent, code]
}

const again = [[200, '{}'], [200, '{"status":"ok"}'], [400, '{"error":"no such key"}']]
const once = [[200, 'ok'], [200, ''], [503, '{"code":200}']]
const seen = await Promise.all([...again, ...once].map(run))
console.log(seen.map(([answer, sent, code]) => `${answer}: sent ${sent} times, told ${code}`).join('; '))
const known = seen.every(([, sent, code], n) => (n < again.length ? sent === 12 && code === 500 : sent === 1 && code === 200))
process.exit(known ? 0 : 1)
JS
timeout 150 node finding.mjs
