// What pages share: asks the run for chunks, has main.mjs send each, and tells which numbers were refused.
import { give, settle, start } from './main.mjs'

const ask = async (path, body = null) => (await fetch(path, { method: 'POST', body: JSON.stringify(body) })).json()
addEventListener('error', (event) => ask('/failed', event.message))
addEventListener('unhandledrejection', (event) => ask('/failed', String(event.reason)))

// What is not sent yet, and since when.
const pending = new Map()
const tells = (refused) => {
  const told = refused.then((numbers) => numbers.length > 0 && ask('/refused', numbers)).finally(() => pending.delete(told))
  pending.set(told, Date.now())
}
const waits = () => [...pending.values()].some((since) => Date.now() - since > 1000)

tells(start())
await ask('/start')
for (;;) {
  const asked = await ask('/chunk')
  if (asked.end) break
  if (asked.chunk) tells(give(asked.chunk))
  if (asked.settle) settle().then(() => ask('/settled'))
  // Once, in the midst of the 503: nothing is under way while all wait, so that this doubles nothing.
  if (asked.chunk && waits() && !sessionStorage.reloaded) {
    sessionStorage.reloaded = true
    location.reload()
    await new Promise(() => {})
  }
}
await Promise.all(pending.keys())
await ask('/end')
