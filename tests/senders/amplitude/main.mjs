import { amplitude } from './block.mjs'
import { events, padding } from './chunks.mjs'

const results = []
for await (const given of events()) {
  const properties = { number: given.number, padding: padding(given) }
  results.push(amplitude.track('Order Placed', properties, { user_id: 'user-1', insert_id: given.id }).promise)
}
// Not flush(): what that sends is not tried again.
for (const { code, message, event } of await Promise.all(results)) {
  if (code !== 200) console.error(code, message, event.insert_id)
}
