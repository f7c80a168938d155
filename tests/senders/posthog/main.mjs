import { posthog } from './block.mjs'
import { events, padding } from './chunks.mjs'

posthog.on('error', (error) => console.error(error.message))
for await (const given of events()) {
  const properties = { number: given.number, padding: padding(given) }
  posthog.capture({ distinctId: 'user-1', event: 'order placed', uuid: given.id, properties })
}
await posthog.shutdown(120_000)
