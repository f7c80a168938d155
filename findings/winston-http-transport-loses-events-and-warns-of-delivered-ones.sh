#!/usr/bin/env bash
# winston 3.19.0 (npm), `transports.Http`. Needs node.
#
# An event that is answered 503, or whose connection is refused, is not kept and not sent again, and the program cannot do either:
# the callback of the write says done before the request is even sent, `error` is never emitted, and what is emitted (a `warn` of
# the logger) holds the status and the transport, not the event. The same `warn` comes for 201 and 204, by which many receivers
# of events say that they have one, so that who counts it as a loss counts what arrived. Only 200 is a success. Nothing is written
# to stderr.
#
# Seen: `503: 1 request, first done, warn without the event; no port: 0 requests, first done, warn without the event; 201: 1
# request, first done, warn without the event; 204: 1 request, first done, warn without the event; 200: 1 request, first done,
# logged with the event`, and nothing on stderr
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
  logger.on('warn', (...told) => heard.push(['warn', told]))
  logger.on('error', (...told) => heard.push(['error', told]))
  logger.transports[0].on('logged', event => heard.push(['logged', [event]]))
  logger.write({ level: 'info', message: 'an event' }, () => order.push('done'))
  await sleep(2000)
  server.close()
  server.closeAllConnections()
  const names = heard.map(([name]) => name).join(' ')
  const has = heard.some(([, told]) => told.some(each => each.message === 'an event'))
  const plural = requests === 1 ? '' : 's'
  return `${listen ? status : 'no port'}: ${requests} request${plural}, first ${order[0]}, ${names} ${has ? 'with' : 'without'} the event`
}

const seen = await Promise.all([run(503), run(0, false), run(201), run(204), run(200)])
console.log(seen.join('; '))
const known = ['503: 1 request', 'no port: 0 requests', '201: 1 request', '204: 1 request']
  .map(each => `${each}, first done, warn without the event`).concat('200: 1 request, first done, logged with the event')
process.exit(seen.join() === known.join() ? 0 : 1)
JS
timeout 60 node finding.mjs 2>stderr
[ ! -s stderr ]
