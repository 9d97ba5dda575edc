// The thread of bridge.js.

import { workerData } from 'node:worker_threads'
import { Connections } from './exchange.js'

const { port, signal } = workerData
const sockets = new Map()

port.on('message', async ({ id, socket, method, body, timeout }) => {
  if (!sockets.has(socket)) sockets.set(socket, new Connections(socket))
  try {
    port.postMessage({ id, answer: await sockets.get(socket).exchange(method, body, timeout) })
  } catch (error) {
    port.postMessage({ id, error: error.message || error.code })
  }
  Atomics.store(signal, 0, 1)
  Atomics.notify(signal, 0)
})
