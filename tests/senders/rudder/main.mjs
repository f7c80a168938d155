import { rudder } from './block.mjs'
import { events, padding } from './chunks.mjs'

for await (const given of events()) {
  const properties = { number: given.number, padding: padding(given) }
  rudder.track({ userId: 'user-1', event: 'Order Placed', messageId: given.id, properties })
}
// One call takes at most flushAt events.
while (rudder.queue.length > 0) await rudder.flush()
await rudder.pendingFlush
