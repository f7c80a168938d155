#!/usr/bin/env bash
# cloudevents 10.0.0 (npm), HTTP in binary mode, data of `application/json` that is not an object. Needs node.
#
# An event whose data is a string is sent as that string, without quotes, under `content-type: application/json`: a receiver that
# believes the header finds no JSON, and refuses an event that is well formed in structured mode. A string that looks like an object
# arrives as one, and this library's own receiver makes an object of it too. A number or `true` is not sent at all: the transport
# throws. And back, a body of `42`, which is JSON, is read as the string "42", so that two services that both use the library see
# nothing of it, until a third in another language joins.
#
# Seen: `"shipped" -> shipped, read back "shipped"; "{\"a\":1}" -> {"a":1}, read back {"a":1}; 42 -> not sent
# (ERR_INVALID_ARG_TYPE); true -> not sent (ERR_INVALID_ARG_TYPE); a body of 42 is read as "42"; read back in structured mode:
# "shipped" "{\"a\":1}" 42 true`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund cloudevents@10.0.0 >log 2>&1
cat >finding.mjs <<'JS'
import http from 'node:http'
import { CloudEvent, HTTP, emitterFor, httpTransport } from 'cloudevents'

const received = []
const server = http.createServer(async (request, response) => {
  received.push({ headers: request.headers, body: Buffer.concat(await request.toArray()).toString() })
  response.end()
})
await new Promise(listens => server.listen(0, '127.0.0.1', listens))
const target = httpTransport(`http://127.0.0.1:${server.address().port}/`)
const said = []
const structured = []
for (const data of ['shipped', '{"a":1}', 42, true]) {
  const event = new CloudEvent({ source: '/finding', type: 'finding', datacontenttype: 'application/json', data })
  try {
    await emitterFor(target)(event)
    const { headers, body } = received.pop()
    const read = JSON.stringify(HTTP.toEvent({ headers, body }).data)
    said.push(`${JSON.stringify(data)} -> ${headers['content-type'] === 'application/json' ? body : '?'}, read back ${read}`)
  } catch (error) {
    said.push(`${JSON.stringify(data)} -> not sent (${error.code})`)
  }
  structured.push(JSON.stringify(HTTP.toEvent(HTTP.structured(event)).data))
}
server.close()
const type = { 'content-type': 'application/json' }
const headers = { 'ce-id': '1', 'ce-source': '/finding', 'ce-type': 'finding', 'ce-specversion': '1.0', ...type }
said.push(`a body of 42 is read as ${JSON.stringify(HTTP.toEvent({ headers, body: '42' }).data)}`)
said.push(`read back in structured mode: ${structured.join(' ')}`)
console.log(said.join('; '))
process.exit(said.join('; ') === String.raw`"shipped" -> shipped, read back "shipped"; `
  + String.raw`"{\"a\":1}" -> {"a":1}, read back {"a":1}; 42 -> not sent (ERR_INVALID_ARG_TYPE); true -> not sent `
  + String.raw`(ERR_INVALID_ARG_TYPE); a body of 42 is read as "42"; read back in structured mode: "shipped" "{\"a\":1}" 42 true`
  ? 0 : 1)
JS
timeout 60 node finding.mjs
