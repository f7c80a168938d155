import { keep, sendKept } from './block.mjs'

const numbers = async (wrong) => (await wrong).map(([event]) => event.number)

export const start = () => numbers(sendKept())
export const give = (chunk) => numbers(keep(chunk.map((given) => given.event)))
export const settle = async () => {}
