// Calls that wait for their answer without the event loop, for interfaces of
// frameworks that are synchronous. A thread of its own speaks to the socket; the
// caller sleeps until it has answered, at most for the time of the call.

import { MessageChannel, receiveMessageOnPort, Worker } from 'node:worker_threads'

const SLACK = 100 // milliseconds that the thread has to say that the time is over
const START = 2000 // milliseconds that its first call may take longer

let bridge // of this process; gone when its thread is

/** Does what Connections do for a socket, and throws what they would reject with. */
export function exchangeSync(socket, method, body, timeout) {
  prepare()
  return bridge.call({ socket, method, body, timeout })
}

/** Starts the thread, so that the first call need not wait for it. */
export function prepare() {
  if (bridge) return
  const mine = new Bridge(() => { if (bridge === mine) bridge = undefined })
  bridge = mine
}

class Bridge {
  #signal = new Int32Array(new SharedArrayBuffer(4)) // 1 when an answer is there
  #port
  #last = 0
  #start = START

  constructor(gone) {
    const { port1, port2 } = new MessageChannel()
    this.#port = port1
    const workerData = { port: port2, signal: this.#signal }
    const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData, transferList: [port2], execArgv: [] })
    worker.on('error', gone)
    worker.on('exit', gone)
    worker.unref()
  }

  call(request) {
    const id = ++this.#last
    Atomics.store(this.#signal, 0, 0)
    this.#port.postMessage({ id, ...request })
    const deadline = performance.now() + request.timeout + SLACK + this.#start
    for (let left; (left = deadline - performance.now()) > 0;) {
      Atomics.wait(this.#signal, 0, 0, left)
      Atomics.store(this.#signal, 0, 0)
      for (let got; (got = receiveMessageOnPort(this.#port));) {
        const { id: of, error, answer } = got.message
        if (of !== id) continue // it came too late for an earlier call
        this.#start = 0
        if (error) throw new Error(error)
        return answer
      }
    }
    throw new Error('it took too long')
  }
}
