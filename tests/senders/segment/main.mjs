import { analytics } from './block.mjs'
import { events, padding } from './chunks.mjs'

for await (const given of events()) {
  const properties = { number: given.number, padding: padding(given) }
  analytics.track({ userId: 'user-1', event: 'Order Placed', messageId: given.id, properties }, (error) => error && console.error(error))
}
await analytics.closeAndFlush({ timeout: 120_000 })
