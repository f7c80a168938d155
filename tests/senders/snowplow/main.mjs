import { buildStructEvent } from '@snowplow/node-tracker'
import { eventStore, tracker } from './block.mjs'
import { events, padding } from './chunks.mjs'

for await (const given of events()) {
  tracker.track(buildStructEvent({ category: 'shop', action: 'order placed', label: given.number, property: padding(given) }))
}
while ((await eventStore.count()) > 0) await new Promise((resolve) => setTimeout(resolve, 100))
