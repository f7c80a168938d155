import { leave } from './block.mjs'

// The browser lists each beacon that is done with, whatever came of it.
let [beacons, done] = [0, 0]
new PerformanceObserver((list) => (done += list.getEntries().filter((entry) => entry.initiatorType === 'beacon').length)).observe({
  type: 'resource',
  buffered: true,
})

export const start = async () => []

export async function give(chunk) {
  if (!leave(chunk.map((given) => given.event))) throw new Error('the browser did not take a beacon')
  beacons += 1
  return []
}

export async function settle() {
  while (done < beacons) await new Promise((resolve) => setTimeout(resolve, 20))
}
