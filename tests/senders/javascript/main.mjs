// Reads chunks from standard input, one a line, sends each, and prints the numbers of what was refused.
import { createInterface } from 'node:readline'
import { send } from './block.mjs'

for await (const line of createInterface({ input: process.stdin })) {
  const refused = await send(JSON.parse(line).map((given) => given.event))
  console.log(JSON.stringify(refused.map(([event]) => event.number)))
}
