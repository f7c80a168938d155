#!/usr/bin/env bash
# winston 3.19.0 (npm), `transports.Http`. Needs node.
#
# An event that is answered 503, or whose connection is refused, is not kept and not sent again, and the program cannot do it either:
# the callback of the write says done before the request is even sent, `error` is never emitted, and what is emitted (a `warn` of
# the logger) holds the status and the transport, not the event. The same `warn` comes for 201, 202 and 204, by which many
# receivers of events say that they have one: whoever falls back to a file at each `warn` writes all events twice, and whoever counts
# them as lost counts delivered ones. Only 200 is a success. Where nobody listens for `warn`, nothing is said at all, on stderr
# neither.
#
# Seen: `503: 1 request, first done, warn without the event; no port: 0 requests, first done, warn without the event; 201: 1 request,
# first done, warn without the event; 204: 1 request, first done, warn without the event; 200: 1 request, first done, logged with
# the event; on stderr: 0 lines`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund winston@3.19.0 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import winston from 'winston'

async function run(status, listen = true) {
  let requests = 0
  const order = []
  const server = http.createServer((request, response) => {
    requests += 1
    order.push('request')
    request.resume().on('end', () => response.writeHead(status).end())
  })
  await new Promise(listens => server.listen(0, '127.0.0.1', listens))
  const { port } = server.address()
  if (!listen) await new Promise(closed => server.close(closed))
  const logger = winston.createLogger({ transports: [new winston.transports.Http({ host: '127.0.0.1', port, path: '/events' })] })
  const heard = []
  for (const name of ['warn', 'error', 'logged']) logger.on(name, (...told) => heard.push([name, told]))
  logger.transports[0].on('logged', event => heard.push(['logged', [event]]))
  logger.write({ level: 'info', message: 'an event' }, () => order.push('done'))
  await sleep(2000)
  server.close()
  server.closeAllConnections()
  const names = heard.map(([name]) => name).join(' ')
  const has = heard.some(([, told]) => told.some(each => each.message === 'an event'))
  return `${listen ? status : 'no port'}: ${requests} request${requests === 1 ? '' : 's'}, first ${order[0]}, ${names}${has ? ' with' : ' without'} the event`
}

const seen = await Promise.all([run(503), run(0, false), run(201), run(204), run(200)])
console.log(seen.join('; '))
JS
timeout 60 node finding.mjs >seen 2>stderr
lines=$(wc -l <stderr)
cat >known <<'KNOWN'
503: 1 request, first done, warn without the event; no port: 0 requests, first done, warn without the event; 201: 1 request, first done, warn without the event; 204: 1 request, first done, warn without the event; 200: 1 request, first done, logged with the event
KNOWN
echo "$(<seen); on stderr: $lines lines"
cmp seen known && [ "$lines" = 0 ]
