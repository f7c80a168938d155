#!/usr/bin/env bash
# @rudderstack/rudder-sdk-node 3.0.13 (npm), as its README has it: a client with a write key and the address of a data plane. Needs
# node.
#
# `await client.flush()` is what one calls before a process ends. Where the batch before was refused, however long ago and though
# the data plane is well again, this call sends nothing: it is rejected with the error of that older batch, and the events that it
# was called for stay in the queue, which ends with the process. Whoever takes the error at its word looks for a request that never
# was. A second call sends them. With an `errorHandler`, which the README lists for notice alone, the first call sends them as one
# would think. (The older batch's own rejection belongs to a flush that the client began by itself: nobody can catch it but a
# handler of `unhandledRejection`, without which Node ends.)
#
# Seen: `flush after an older 400: Bad Request, 0 of 5 events sent; the same call again: done, 5 of 5; with an errorHandler: done, 5
# of 5; rejections that nobody could catch: 1`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @rudderstack/rudder-sdk-node@3.0.13 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { gunzipSync } from 'node:zlib'
import sdk from '@rudderstack/rudder-sdk-node'

const Client = sdk.default ?? sdk
let uncaught = 0
process.on('unhandledRejection', () => { uncaught += 1 })

async function run(port, options) {
  let requests = 0
  const arrived = new Set()
  const plane = http.createServer(async (request, response) => {
    const body = Buffer.concat(await request.toArray())
    requests += 1
    const well = requests > 1
    if (well) JSON.parse(gunzipSync(body)).batch.forEach(each => arrived.add(each.event))
    response.writeHead(well ? 200 : 400, { 'Content-Type': 'application/json' }).end('{}')
  })
  await new Promise(listens => plane.listen(port, '127.0.0.1', listens))
  const client = new Client('key', { dataPlaneUrl: `http://127.0.0.1:${port}`, logLevel: 'none', ...options })
  client.track({ userId: 'u', event: 'refused' })
  await sleep(3000)
  for (let n = 0; n < 5; n += 1) client.track({ userId: 'u', event: `later ${n}` })
  const flush = async () => `${await client.flush().then(() => 'done', error => error.message)}, ${arrived.size} of 5`
  const outcomes = [await flush(), await flush()]
  plane.close()
  return outcomes
}

const [first, second] = await run(29681, {})
const lost = uncaught
const [handled] = await run(29682, { errorHandler: () => {} })
console.log(`flush after an older 400: ${first} events sent; the same call again: ${second}; with an errorHandler: ${handled}; `
  + `rejections that nobody could catch: ${lost}`)
const known = first === 'Bad Request, 0 of 5' && second === 'done, 5 of 5' && handled === 'done, 5 of 5' && lost === 1
process.exit(known ? 0 : 1)
JS
node finding.mjs 2>>log
