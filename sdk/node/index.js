/**
 * Makes and checks tokens with a machine key that is in custody.
 *
 * A Key speaks to the server's local socket; the kernel tells the server which
 * uid calls. No key material ever reaches this process. Every way in which custody
 * can be away is an error, never a token that counts as wrong: a framework that
 * takes it for a bad signature would log its users out.
 */

import { AsyncLocalStorage } from 'node:async_hooks'
import { randomBytes } from 'node:crypto'
import { exchangeSync, prepare } from './bridge.js'
import { Connections } from './exchange.js'

export const SOCKET = '/run/claviger/claviger.sock'

const seen = new AsyncLocalStorage()

/** Custody refused the call or could not do it. code is one of the API's. */
export class ClavigerError extends Error {
  constructor(code, message, hint = '', options) {
    super(hint ? `${message}: ${hint}` : message, options)
    Object.assign(this, { code, hint })
  }

  get name() { return 'claviger.ClavigerError' }

  /** The HTTP status that frameworks answer with. */
  get status() { return 500 }
}

/** Custody is away, or cannot answer now. Nothing was signed or checked. */
export class Unavailable extends ClavigerError {
  get name() { return 'claviger.Unavailable' }

  get status() { return 503 }
}

/**
 * Returns a secret of this start alone, for the setting of a framework that asks
 * for one: whatever signs with it makes tokens that no other process takes. It
 * refuses while one of the environment's variables still has the old secret.
 */
export function randomSecret(...variables) {
  for (const name of variables) {
    if (process.env[name]) {
      throw new ClavigerError('invalid', `${name} is in the environment still`, 'adopt it into custody, and remove it')
    }
  }
  return randomBytes(48).toString('base64url')
}

/**
 * Runs a function and notes in about.error what the last call within it met that
 * failed, even when a framework swallowed the error.
 */
export function watching(about, run) {
  return seen.run(about, run)
}

/** A machine key by its name. */
export class Key {
  #connections

  /** timeout, in milliseconds, bounds one call with everything in it. */
  constructor(name, { socket = SOCKET, timeout = 2000 } = {}) {
    Object.assign(this, { name, socket, timeout })
    this.#connections = new Connections(socket)
  }

  /** Resolves to the token of a payload. */
  async protect(format, payload, params = {}) {
    return (await this.#call('Protect', this.#body(format, params, 'payloads', [payload]), tokens))[0]
  }

  /** Resolves to what a token says, or to null when it is not valid, for whatever reason. */
  async unprotect(format, token, params = {}) {
    return (await this.unprotectAll(format, [token], params))[0]
  }

  /** As unprotect, for up to 1000 tokens at once. */
  async unprotectAll(format, list, params = {}) {
    return this.#call('Unprotect', this.#body(format, params, 'tokens', list), items(list.length))
  }

  /** As protect, but the process waits for the answer. */
  protectSync(format, payload, params = {}) {
    return this.#callSync('Protect', this.#body(format, params, 'payloads', [payload]), tokens)[0]
  }

  /** As unprotect, but the process waits for the answer. */
  unprotectSync(format, token, params = {}) {
    return this.#callSync('Unprotect', this.#body(format, params, 'tokens', [token]), items(1))[0]
  }

  /** Starts what the calls that wait need, so that the first is as fast as the others. */
  prepare() {
    prepare()
  }

  #body(format, params, field, list) {
    return JSON.stringify({ key: this.name, format, params: json(params), [field]: list.map(base64) })
  }

  async #call(method, body, read) {
    let answer
    try {
      answer = await this.#connections.exchange(method, body, this.timeout)
    } catch (error) {
      throw this.#away(error)
    }
    return this.#read(answer, read)
  }

  #callSync(method, body, read) {
    let answer
    try {
      answer = exchangeSync(this.socket, method, body, this.timeout)
    } catch (error) {
      throw this.#away(error)
    }
    return this.#read(answer, read)
  }

  #away(cause) {
    return noted(new Unavailable('unavailable', `custody does not answer at ${this.socket} (${cause.message || cause.code})`,
      'start claviger, or see that this process may reach its socket; nothing was signed or checked', { cause }))
  }

  #read({ status, code, hint, text }, read) {
    let refused
    try {
      const answer = JSON.parse(text)
      if (status === 200) return read(answer)
      code ||= answer.code || 'internal'
      refused = `custody answered for ${this.name}: ${answer.message || code}`
    } catch {
      throw noted(new Unavailable('unavailable', `what answers at ${this.socket} is not Claviger`))
    }
    const Kind = ['unavailable', 'stale', 'deadline'].includes(code) ? Unavailable : ClavigerError
    throw noted(new Kind(code, refused, hint))
  }
}

function noted(error) {
  const about = seen.getStore()
  if (about) about.error = error
  return error
}

function tokens(answer) {
  const [token] = answer.tokens
  return [Buffer.from(token, 'base64').toString()]
}

function items(count) {
  return (answer) => {
    if (answer.items.length !== count) throw new TypeError('another number of items')
    return answer.items.map((item) => {
      if (!item.ok) return null
      if (!Number.isInteger(item.version)) throw new TypeError('an item without a version')
      return {
        payload: Buffer.from(item.payload ?? '', 'base64'),
        version: item.version,
        renew: item.renew ?? false,
        issued: item.issued && new Date(item.issued),
        expires: item.expires && new Date(item.expires),
      }
    })
  }
}

function base64(data) {
  return Buffer.from(data).toString('base64')
}

function json(params) {
  return Object.fromEntries(Object.entries(params).map(([name, value]) => [name, value instanceof Uint8Array ? base64(value) : value]))
}
