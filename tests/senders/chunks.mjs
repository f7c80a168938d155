// What the programs in JavaScript share: the chunks that stand on standard input, one a line.
import { createInterface } from 'node:readline'

/** Events, each as soon as it is there: { number, id, wrong, event }. */
export async function* events() {
  for await (const line of createInterface({ input: process.stdin })) yield* JSON.parse(line)
}

/** Makes an event larger than the daemon takes. */
export const padding = (given) => (given.wrong ? 'x'.repeat(12_000) : undefined)

/** Tells the run which events this program was told to be wrong. */
export const refused = (given) => console.log(JSON.stringify([given.number]))
