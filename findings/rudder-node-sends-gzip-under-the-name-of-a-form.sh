#!/usr/bin/env bash
# @rudderstack/rudder-sdk-node 3.0.13 (npm), as its README has it, and express 5.1.0 as the receiver. Needs node.
#
# The client sends gzipped JSON, and calls it `application/x-www-form-urlencoded`; with `gzip: false` the same JSON goes as
# `application/json`. (It compresses the JSON itself, and the HTTP client below it makes a form of any body of bytes.) What inflates
# a body and then believes its type, as frameworks, proxies and firewalls do, takes the batch for a form: express' JSON parser
# passes it over, so that a handler sees no body and answers 200 to a batch that it lost. Its form parser has the batch in the names
# of fields, cut at each `&` and `=` of the events, with spaces for each `+`.
#
# Seen: `gzip: application/x-www-form-urlencoded, express.json() sees nothing, express.urlencoded() 2 fields, starting
# {"batch":[{"userId; plain: application/json, express.json() sees a batch of 1`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @rudderstack/rudder-sdk-node@3.0.13 express@5.1.0 >log 2>&1
cat >finding.mjs <<'JS'
import express from 'express'
import sdk from '@rudderstack/rudder-sdk-node'

const Client = sdk.default ?? sdk

async function run(parser, options) {
  let seen
  const app = express()
  app.use(parser)
  app.post('/v1/batch', (request, response) => {
    seen = { type: request.headers['content-type'], body: request.body }
    response.json({})
  })
  const server = await new Promise(listens => { const it = app.listen(0, '127.0.0.1', () => listens(it)) })
  const client = new Client('key', { dataPlaneUrl: `http://127.0.0.1:${server.address().port}`, logLevel: 'none', ...options })
  client.track({ userId: 'u', event: 'search', properties: { query: 'a=1&b=1+1' } })
  await client.flush()
  server.close()
  server.closeAllConnections()
  return seen
}

const json = await run(express.json(), {})
const form = await run(express.urlencoded(), {})
const plain = await run(express.json(), { gzip: false })
const fields = Object.keys(form.body)
console.log(`gzip: ${json.type}, express.json() sees ${json.body === undefined ? 'nothing' : 'a body'}, express.urlencoded() `
  + `${fields.length} fields, starting ${fields[0].slice(0, 18)}; plain: ${plain.type}, express.json() sees a batch of `
  + `${plain.body.batch.length}`)
const known = json.type === 'application/x-www-form-urlencoded' && json.body === undefined && fields.length === 2
  && fields[0].startsWith('{"batch":[{"userId') && plain.type === 'application/json' && plain.body.batch.length === 1
process.exit(known ? 0 : 1)
JS
timeout 60 node finding.mjs 2>>log
