/**
 * The session tokens of NextAuth 4 and Auth.js 5, encrypted in custody.
 */

import { randomUUID } from 'node:crypto'
import { guard as guardResponse } from './guard.js'
import { watching } from './index.js'

const THIRTY_DAYS = 30 * 24 * 3600 // seconds

/** The names of the environment's variables from which both take a secret. */
export const VARIABLES = ['NEXTAUTH_SECRET', 'AUTH_SECRET', 'AUTH_SECRET_1', 'AUTH_SECRET_2', 'AUTH_SECRET_3']

/** Returns encode and decode for the option jwt of NextAuth 4, and for its getToken. */
export function nextauth(key) {
  return codec(key, 'nextauth')
}

/** Returns encode and decode for the option jwt of Auth.js 5, and for its getToken. */
export function authjs(key) {
  return codec(key, 'authjs')
}

function codec(key, format) {
  return {
    encode: ({ token = {}, maxAge = THIRTY_DAYS, salt = '' } = {}) => {
      const iat = Math.floor(Date.now() / 1000)
      return key.protect(format, JSON.stringify({ ...token, iat, exp: iat + maxAge, jti: randomUUID() }), { salt })
    },
    decode: async ({ token, salt = '' } = {}) => {
      if (!token) return null
      const found = await key.unprotect(format, token, { salt })
      if (!found) throw new Error('the session token is not valid')
      return JSON.parse(found.payload.toString())
    },
  }
}

/**
 * Wraps whatever calls decode: a handler of NextAuth or Auth.js, getServerSession,
 * getToken. Those take every error of decode for a bad token, and remove the
 * cookie. Guarded they fail when custody is away: a handler answers 503, the others
 * throw, and the cookie stays.
 */
export function guard(handler) {
  return async (...args) => {
    const about = {}
    const response = args.find((arg) => typeof arg?.writeHead === 'function')
    const cookies = response?.getHeader('Set-Cookie')
    if (response) guardResponse(response, () => { if (about.error && !about.thrown) throw about.error })
    const result = await watching(about, () => handler(...args))
    if (!about.error || response?.headersSent) return result
    if (result instanceof Response) {
      console.error(about.error)
      return new Response('custody of keys is not available\n', { status: about.error.status, headers: { 'Cache-Control': 'no-store' } })
    }
    about.thrown = true // whoever takes it answers
    if (cookies === undefined) response?.removeHeader('Set-Cookie')
    else response.setHeader('Set-Cookie', cookies)
    throw about.error
  }
}
