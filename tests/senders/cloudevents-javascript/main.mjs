import { CloudEvent } from 'cloudevents'
import { emit } from './block.mjs'
import { events, refused } from './chunks.mjs'

for await (const given of events()) {
  const type = given.wrong ? 'x'.repeat(200) : 'order.placed'
  const event = new CloudEvent({ type, source: '/shop', id: given.id, data: { number: given.number } })
  await emit(event).catch(() => refused(given))
}
