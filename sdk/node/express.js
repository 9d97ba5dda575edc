/**
 * Express without its secrets: cookie-parser, res.cookie, express-session and
 * cookie-session sign with a random secret of this start, and a middleware before
 * them translates. What comes in is checked in custody and signed with the random
 * secret; what goes out is signed in custody. So it covers every copy and version
 * of those packages, and a path that it does not see fails closed.
 */

import { createHmac } from 'node:crypto'
import { decode, format, parse } from './cookies.js'
import { guard } from './guard.js'
import { ClavigerError, randomSecret } from './index.js'

const SIGNED = /^s:(.*)\.([A-Za-z0-9+/]{43})$/s
const DETACHED = /^[A-Za-z0-9_-]{27}$/ // as keys signs
const MOST = 16 // detached signatures of one request that are looked at: each is a call

/**
 * Returns the middleware, to be installed before all others. signed is the Key of
 * cookie-parser and express-session, keygrip that of cookie-session; digest is
 * keygrip's. only lists the names of the cookies that are translated, when not all
 * are. environment lists variables that had the old secrets and must be gone.
 *
 * middleware.secret is for cookie-parser and express-session, middleware.keys for
 * cookie-session.
 */
export function custody({ signed, keygrip, digest = 'sha1', only, environment = [] }) {
  const secret = randomSecret(...environment)
  const keys = [randomSecret(), randomSecret()] // the second is of cookies that are to be signed again
  const mine = (name) => !only || only.includes(name.replace(/\.sig$/, ''))
  for (const key of [signed, keygrip]) key?.prepare()

  function middleware(request, response, next) {
    const state = { request, response, renew: new Map() }
    guard(response, () => outgoing(state))
    const header = request.headers.cookie
    if (!header) return next()
    incoming(state, parse(header)).then(() => next(), next)
  }

  async function incoming(state, cookies) {
    const first = new Map([...cookies].reverse())
    const expressed = signed ? cookies.filter(([name, text]) => mine(name) && decode(text).startsWith('s:')) : []
    const detached = keygrip ? cookies.filter(([name]) => mine(name) && name.endsWith('.sig') && first.has(name.slice(0, -4))) : []
    if (expressed.length + detached.length === 0) return
    const asked = expressed.filter(([, text]) => SIGNED.test(decode(text)))
    const [found] = await Promise.all([
      asked.length ? signed.unprotectAll('express.cookie', asked.map(([, text]) => decode(text))) : [],
      ...detached.slice(0, MOST).map((cookie) => takeDetached(cookie, first)),
    ])
    for (const cookie of detached.slice(MOST)) cookie[1] = '-'
    const known = new Map(asked.map((cookie, i) => [cookie, found[i]]))
    for (const cookie of expressed) takeExpress(state, cookie, known.get(cookie))
    state.first = first
    state.request.headers.cookie = format(cookies)
  }

  function takeExpress(state, cookie, found) {
    const value = decode(cookie[1])
    const [, payload] = SIGNED.exec(value) ?? []
    if (found?.renew) state.renew.set(cookie[0], payload)
    cookie[1] = encodeURIComponent(found ? `s:${payload}.${expressTag(payload, secret)}` : `${value}.-`) // which no secret signs
  }

  async function takeDetached(cookie, first) {
    const over = signedText(cookie[0], first)
    const found = await keygrip.unprotect('keygrip', cookie[1], { over: Buffer.from(over), digest })
    cookie[1] = found ? keygripTag(over, keys[found.renew ? 1 : 0]) : '-'
  }

  function outgoing({ request, response, renew, first }) {
    const before = response.getHeader('Set-Cookie')
    const cookies = before === undefined ? [] : [before].flat().map(cut)
    const set = new Map(cookies.map(({ name, text }) => [name, text]))
    for (const cookie of cookies) {
      if (!mine(cookie.name)) continue
      if (signed) putExpress(cookie)
      if (keygrip && DETACHED.test(cookie.text) && cookie.name.endsWith('.sig')) putDetached(cookie, set, first)
    }
    const lines = cookies.map(({ name, text, rest }) => `${name}=${text}${rest}`)
    for (const [name, id] of renew) { // a session of express-session that an older version signed
      if (set.has(name) || request.sessionID !== id || !request.session?.cookie?.serialize) continue
      lines.push(request.session.cookie.serialize(name, signed.protectSync('express.cookie', id)))
    }
    if (lines.length) response.setHeader('Set-Cookie', lines)
  }

  function putExpress(cookie) {
    const value = decode(cookie.text)
    const [, payload, tag] = SIGNED.exec(value) ?? []
    if (payload === undefined) return
    if (tag !== expressTag(payload, secret)) throw foreign(cookie.name, 'secret')
    const token = signed.protectSync('express.cookie', payload)
    cookie.text = cookie.text === value ? token : encodeURIComponent(token)
  }

  function putDetached(cookie, set, first) {
    const over = [set, first].map((from) => from && signedText(cookie.name, from)).find((text) => text && cookie.text === keygripTag(text, keys[0]))
    if (!over) throw foreign(cookie.name, 'keys')
    cookie.text = keygrip.protectSync('keygrip', '', { over: Buffer.from(over), digest })
  }

  return Object.assign(middleware, { secret, keys })
}

function foreign(name, setting) {
  return new ClavigerError('invalid', `the cookie ${name} is signed with a secret of another`,
    `give its package the ${setting} of the middleware, or list in only the cookies that are in custody`)
}

function expressTag(value, secret) {
  return createHmac('sha256', secret).update(value).digest('base64').replace(/=+$/, '')
}

function keygripTag(text, key) {
  return createHmac('sha1', key).update(text).digest('base64url')
}

/** What the signature in a cookie NAME.sig is over. */
function signedText(name, cookies) {
  const of = name.slice(0, -4)
  return cookies.has(of) ? `${of}=${cookies.get(of).replace(/^"(.*)"$/, '$1')}` : undefined
}

function cut(line) {
  const [, name, text, rest] = /^([^=;]*)=?([^;]*)(.*)$/s.exec(line)
  return { name, text, rest }
}
