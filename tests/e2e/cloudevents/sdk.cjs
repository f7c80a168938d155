// Sends events with the CloudEvents SDK for JavaScript, in each mode: sdk.cjs URL. Prints what each is, a line each:
// {"attributes": {…}, "data"}, its data as base64.

const { CloudEvent, HTTP, Mode, emitterFor, httpTransport } = require("cloudevents");

const url = process.argv[2];
const time = "2026-11-23T08:00:00.123Z";
// Node.js sends these characters in ISO 8859-1; others the SDK cannot send in headers.
const further = { subject: "Größe", shop: 7, dataschema: "https://example.com/schema" };
// Content type, further attributes, data as a program gives it, its bytes in a binary message, and in an envelope.
const events = {
  json: ["application/json", further, { n: 1, ü: [null] }, '{"n":1,"ü":[null]}'],
  text: ["text/plain", { partitionkey: "p" }, "Grüße\n", "Grüße\n"],
  bytes: ["application/octet-stream", {}, Buffer.from([255, 0]), Buffer.from([255, 0])],
  // Without a type the SDK says application/json, whatever it is.
  string: [undefined, {}, "no JSON", "no JSON", '"no JSON"'],
};

function* made(mode) {
  for (const [name, [datacontenttype, more, data, binary, enveloped]] of Object.entries(events)) {
    const attributes = { id: `${mode}-${name}`, source: "/javascript", type: `javascript.${mode}`, time, ...more };
    if (datacontenttype) attributes.datacontenttype = datacontenttype;
    const implied = mode === "binary" ? "application/json; charset=utf-8" : "application/json";
    const expected = { ...attributes, specversion: "1.0", datacontenttype: datacontenttype ?? implied };
    for (const key of Object.keys(expected)) expected[key] = String(expected[key]);
    const bytes = Buffer.from(mode !== "binary" && enveloped ? enveloped : binary);
    yield [new CloudEvent({ ...attributes, data }), { attributes: expected, data: bytes.toString("base64") }];
  }
}

function check(response, number) {
  const { accepted } = JSON.parse(response.body);
  if (accepted !== number) throw new Error(response.body);
}

async function main() {
  for (const mode of [Mode.BINARY, Mode.STRUCTURED]) {
    const emit = emitterFor(httpTransport(url), { mode });
    for (const [event, expected] of made(mode)) {
      check(await emit(event), 1);
      console.log(JSON.stringify(expected));
    }
  }
  // The SDK makes no batches: they are what its envelopes are, in an array.
  const batch = [...made("batched")];
  const body = `[${batch.map(([event]) => HTTP.structured(event).body).join(",")}]`;
  const headers = { "content-type": "application/cloudevents-batch+json" };
  check(await httpTransport(url)({ headers, body }, {}), batch.length);
  for (const [, expected] of batch) console.log(JSON.stringify(expected));
}

main();
