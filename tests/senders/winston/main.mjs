import { logger } from './block.mjs'
import { events } from './chunks.mjs'

// A type that is no string is what makes an event wrong.
for await (const given of events()) logger.info(given.number, given.wrong ? { type: 5 } : {})
await new Promise((resolve) => logger.on('finish', resolve).end())
await new Promise((resolve) => setTimeout(resolve, 500))
