/**
 * iron-session without its password: sealData, unsealData and getIronSession as
 * iron-session 8 has them, with the password in custody. Import them from here
 * instead, and leave password out of the options.
 */

import { decode, parse, serialize } from './cookies.js'
import { ClavigerError } from './index.js'

const FOURTEEN_DAYS = 14 * 24 * 3600 // seconds
const SKEW = 60 // seconds that a cookie ends before what is sealed in it

/** Returns the functions of iron-session for a Key. id is that of the password which seals. */
export function ironSession(key, { id = '1' } = {}) {
  async function sealData(data, options = {}) {
    refusePassword(options)
    const { ttl = FOURTEEN_DAYS } = options
    const params = { keyId: id, ...(ttl && { expires: new Date(Date.now() + ttl * 1000) }) }
    return key.protect('iron-session', JSON.stringify(data), params)
  }

  async function unsealData(seal, options = {}) {
    refusePassword(options)
    return (await open(seal)).data
  }

  async function open(seal) {
    const version2 = seal.endsWith('~2')
    const found = await key.unprotect(version2 ? 'iron-session' : 'iron', version2 ? seal : seal.split('~')[0])
    if (!found) return { data: {} }
    const data = JSON.parse(found.payload.toString())
    return { ...found, data: version2 ? data : { ...data.persistent } }
  }

  /** Seals again what an older version sealed. It ends when it would have. */
  async function renew(jar, config, { data, expires }) {
    const left = expires && Math.floor((expires - Date.now()) / 1000)
    if (left <= SKEW) return
    const seal = await key.protect('iron-session', JSON.stringify(data), { keyId: id, ...(expires && { expires }) })
    const { maxAge } = config.cookieOptions
    jar.set(config.cookieName, seal, { ...config.cookieOptions, maxAge: left === undefined || maxAge === undefined ? maxAge : Math.min(maxAge, left - SKEW) })
  }

  async function getIronSession(...args) {
    const options = args.at(-1)
    const jar = args.length === 2 ? ofStore(args[0]) : ofResponse(args[0], args[1])
    if (!options?.cookieName) throw new TypeError('getIronSession: the options have no cookieName')
    refusePassword(options)
    let config = complete(options)
    const held = jar.get(config.cookieName)
    const found = held ? await open(held) : { data: {} }
    if (found.renew && jar.mayRenew()) await renew(jar, config, found)
    const session = found.data
    const methods = {
      updateConfig: (fresh) => {
        refusePassword(fresh)
        config = complete(fresh)
      },
      save: async () => {
        jar.ready()
        const seal = await sealData(session, { ttl: config.ttl })
        const { length } = serialize(config.cookieName, seal, config.cookieOptions)
        if (length > 4096) throw new RangeError(`the session's cookie has ${length} bytes: browsers take 4096`)
        jar.set(config.cookieName, seal, config.cookieOptions)
      },
      destroy: () => {
        for (const name of Object.keys(session)) delete session[name]
        jar.set(config.cookieName, '', { ...config.cookieOptions, maxAge: 0 })
      },
    }
    return Object.defineProperties(session, Object.fromEntries(Object.entries(methods).map(([name, value]) => [name, { value }])))
  }

  return { sealData, unsealData, getIronSession }
}

function refusePassword(options) {
  if (options.password !== undefined) {
    throw new ClavigerError('invalid', 'the options of iron-session have a password still', 'adopt it into custody, and remove it')
  }
}

function complete(options) {
  let { ttl = FOURTEEN_DAYS } = options
  const cookieOptions = { httpOnly: true, secure: true, sameSite: 'lax', path: '/', ...options.cookieOptions }
  if (!('maxAge' in cookieOptions)) cookieOptions.maxAge = ttl === 0 ? 2 ** 31 - 1 : ttl - SKEW
  else if (cookieOptions.maxAge === undefined) ttl = 0 // the browser's session ends it
  return { cookieName: options.cookieName, ttl, cookieOptions }
}

/** The cookies of a store such as that of next/headers. */
function ofStore(store) {
  return {
    get: (name) => store.get(name)?.value ?? '',
    set: (name, value, options) => store.set(name, value, options),
    ready: () => {},
    mayRenew: () => false, // where such a store may be written is not known here
  }
}

/** The cookies of a request and a response of Node or of fetch. */
function ofResponse(request, response) {
  const header = typeof request.headers.get === 'function' ? request.headers.get('cookie') : request.headers.cookie
  return {
    get: (name) => decode(parse(header ?? '').find(([is]) => is === name)?.[1] ?? ''),
    set: (name, value, options) => {
      const line = serialize(name, value, options)
      if (typeof response.headers?.append === 'function') response.headers.append('set-cookie', line)
      else response.setHeader('Set-Cookie', [response.getHeader('Set-Cookie') ?? [], line].flat())
    },
    mayRenew: () => !response.headersSent,
    ready: () => {
      if (response.headersSent) throw new Error('session.save() was called after the headers were sent')
    },
  }
}
