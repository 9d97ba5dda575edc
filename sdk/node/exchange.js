// Requests to the server's local socket, each within a time. This is HTTP/1.1 over
// connections that are kept open; node:http does the same at several times the
// cost, most of it for what nobody reads.

import net from 'node:net'

const MAX_ANSWER = 8 << 20 // bytes; a token has at most 1 MiB
const MAX_IDLE = 32 // connections that are kept

/** The connections to one socket. */
export class Connections {
  #path
  #idle = []

  constructor(path) {
    this.#path = path
  }

  /**
   * Posts a JSON text and resolves to { status, code, hint, text }. It rejects when
   * nothing, or no HTTP, answers within timeout, in milliseconds.
   */
  async exchange(method, body, timeout) {
    const request = `POST /claviger.v1.StateService/${method} HTTP/1.1\r\nHost: claviger\r\nContent-Type: application/json\r\n`
      + `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
    const deadline = performance.now() + timeout
    for (;;) {
      const kept = this.#idle.pop()
      const connection = kept ?? new Connection(this.#path, (gone) => { this.#idle = this.#idle.filter((one) => one !== gone) })
      try {
        const answer = await connection.exchange(request, deadline - performance.now())
        if (answer.keep && this.#idle.length < MAX_IDLE) this.#idle.push(connection)
        else connection.close()
        return answer
      } catch (error) {
        connection.close(error)
        // The server closes connections that are idle: a kept one may be gone, a new
        // one not. A call may be sent twice without harm.
        if (!kept || performance.now() >= deadline) throw error
      }
    }
  }
}

class Connection {
  #socket
  #chunks = []
  #size = 0
  #call // the one that waits for its answer

  constructor(path, gone) {
    this.#socket = net.connect(path)
    this.#socket.on('data', (chunk) => this.#take(chunk))
    this.#socket.on('error', (error) => this.close(error))
    this.#socket.on('close', () => {
      this.close(new Error('the connection was closed'))
      gone(this)
    })
  }

  exchange(request, timeout) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.close(new Error('it took too long')), Math.max(1, timeout))
      this.#call = { resolve, reject, timer }
      this.#socket.ref()
      this.#socket.write(request)
    })
  }

  close(error) {
    this.#socket.destroy()
    this.#finish('reject', error)
  }

  #finish(how, value) {
    if (!this.#call) return
    const call = this.#call
    this.#call = undefined
    clearTimeout(call.timer)
    this.#socket.unref() // a connection that nobody waits for keeps no process alive
    call[how](value)
  }

  #take(chunk) {
    this.#chunks.push(chunk)
    this.#size += chunk.length
    if (!this.#call) return this.close() // nobody asked
    if (this.#size > MAX_ANSWER) return this.close(new Error('the answer is too long'))
    let answer
    try {
      const all = this.#chunks.length === 1 ? chunk : Buffer.concat(this.#chunks)
      this.#chunks = [all]
      answer = parse(all)
    } catch (error) {
      return this.close(error)
    }
    if (!answer) return
    this.#chunks = []
    this.#size = 0
    this.#finish('resolve', answer)
  }
}

/** Returns the answer that is in data, or undefined when there is more to come. */
function parse(data) {
  const end = data.indexOf('\r\n\r\n')
  if (end < 0) return undefined
  const [first, ...lines] = data.toString('latin1', 0, end).split('\r\n')
  const status = /^HTTP\/1\.1 (\d{3})( |$)/.exec(first)?.[1]
  if (!status) throw new Error('it is no HTTP')
  const headers = Object.fromEntries(lines.map((line) => {
    const at = line.indexOf(':')
    return [line.slice(0, at).toLowerCase(), line.slice(at + 1).trim()]
  }))
  const body = headers['transfer-encoding'] === 'chunked' ? dechunk(data, end + 4) : take(data, end + 4, headers['content-length'], 10)
  return body && {
    status: Number(status),
    code: headers['claviger-code'] ?? '',
    hint: headers['claviger-hint'] ?? '',
    text: body.bytes.toString(),
    keep: headers.connection !== 'close' && body.next === data.length,
  }
}

function take(data, from, length, base) {
  const digits = base === 16 ? /^[0-9a-f]{1,7}$/i : /^\d{1,7}$/
  if (!digits.test(length)) throw new Error('the answer has no length')
  const next = from + parseInt(length, base)
  return next <= data.length ? { bytes: data.subarray(from, next), next } : undefined
}

function dechunk(data, from) {
  const parts = []
  for (;;) {
    const end = data.indexOf('\r\n', from)
    if (end < 0) return undefined
    const chunk = take(data, end + 2, data.toString('latin1', from, end).split(';')[0].trim(), 16)
    if (!chunk || data.length < chunk.next + 2) return undefined
    if (chunk.bytes.length === 0) return { bytes: Buffer.concat(parts), next: chunk.next + 2 }
    parts.push(chunk.bytes)
    from = chunk.next + 2
  }
}
