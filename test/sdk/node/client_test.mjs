// Tests of the client, of what guards a response and of cookies: client_test.mjs SOCKET SECRET PASSWORD

import assert from 'node:assert/strict'
import fs from 'node:fs'
import http from 'node:http'
import { createRequire } from 'node:module'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import test from 'node:test'
import Cookies from 'cookies'
import LocalKeygrip from 'keygrip'
import { ClavigerError, Key, randomSecret, Unavailable, watching } from 'claviger'
import { custody } from 'claviger/express'
import { ironSession } from 'claviger/iron-session'
import { jwt } from 'claviger/jwt'
import { Keygrip } from 'claviger/keygrip'
import * as iron8 from 'iron-session'
import * as iron9 from 'iron-session9'
import jsonwebtoken from 'jsonwebtoken'

const [socket, secret, password] = process.argv.slice(2)
const at = (name) => new Key(`dev/shop/${name}`, { socket })

/** A server that answers each connection in a given way. */
async function fake(t, ...answers) {
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'fake')), 's')
  const held = []
  const server = net.createServer((connection) => {
    const parts = [...answers.shift() ?? []]
    held.push(connection)
    connection.on('error', () => {})
    connection.on('data', () => {
      const part = parts.shift()
      if (part === null) connection.destroy()
      else if (part !== undefined) connection.write(part)
    })
  })
  await new Promise((done) => server.listen(file, done))
  t.after(() => {
    server.close()
    for (const connection of held) connection.destroy()
  })
  return file
}

function answer(body, header = `Content-Length: ${body.length}`) {
  return `HTTP/1.1 200 OK\r\n${header}\r\n\r\n${body}`
}

const notValid = answer('{"items":[{}]}')

/** Serves a handler behind a middleware, and returns what fetches from it. */
async function serve(t, middleware, handler) {
  const server = http.createServer((req, res) => middleware(req, res, (error) => (error ? res.writeHead(error.status).end() : handler(req, res))))
  await new Promise((done) => server.listen(0, '127.0.0.1', done))
  t.after(() => server.close())
  return (cookie, options) => fetch(`http://127.0.0.1:${server.address().port}/`, { headers: cookie ? { cookie } : {}, ...options })
}

test('tokens', async () => {
  const key = at('signed')
  const token = await key.protect('cookie-signature', 'größe')
  const { payload, version, renew } = await key.unprotect('cookie-signature', token)
  assert.deepEqual([payload.toString(), version, renew], ['größe', 1, false])
  assert.equal(await key.unprotect('cookie-signature', `${token}x`), null)
  assert.deepEqual(await key.unprotectAll('cookie-signature', ['x', token]).then((all) => all.map((one) => one?.version)), [undefined, 1])
  assert.equal(key.protectSync('cookie-signature', 'größe'), token)
  assert.equal(key.unprotectSync('cookie-signature', token).payload.toString(), 'größe')
  assert.equal(key.unprotectSync('cookie-signature', 'x.y'), null)
  const large = 'x'.repeat(100_000)
  assert.equal((await key.unprotect('cookie-signature', await key.protect('cookie-signature', large))).payload.toString(), large)
  assert.equal(key.unprotectSync('cookie-signature', key.protectSync('cookie-signature', large)).payload.toString(), large)
})

test('refusals', async () => {
  for (const [key, format, code] of [[at('none'), 'cookie-signature', 'not_found'], [at('signed'), 'rails.verifier', 'unsupported']]) {
    const is = (error) => error instanceof ClavigerError && !(error instanceof Unavailable) && error.code === code && error.hint !== '' && error.status === 500
    await assert.rejects(key.protect(format, 'x'), is)
    assert.throws(() => key.protectSync(format, 'x'), is)
  }
})

test('many at once', async () => {
  const key = at('signed')
  const all = await Promise.all(Array.from({ length: 200 }, async (_, i) => {
    const token = await key.protect('cookie-signature', `n${i}`)
    return (await key.unprotect('cookie-signature', token)).payload.toString()
  }))
  assert.deepEqual(all, Array.from({ length: 200 }, (_, i) => `n${i}`))
})

test('required by CommonJS', { skip: !process.features.require_module && 'this Node cannot require modules' }, () => {
  const required = createRequire(import.meta.url)('claviger')
  assert.equal(required.Key, Key)
})

test('a kept connection that is gone', async (t) => {
  const key = new Key('k', { socket: await fake(t, [notValid, null], [notValid]) })
  assert.equal(await key.unprotect('f', 't'), null)
  assert.equal(await key.unprotect('f', 't'), null)
})

test('an answer in chunks', async (t) => {
  const chunked = ['5\r\n{"ite\r\n', 'd;x=y\r\nms":[{}]}    \r', '\n0\r\n', '\r\n']
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'fake')), 's')
  const server = net.createServer((connection) => connection.on('data', async () => {
    for (const part of ['HTTP/1.1 200 OK\r\nTransfer-Enc', 'oding: chunked\r\n\r\n', ...chunked]) {
      await new Promise((done) => connection.write(part, done))
      await new Promise(setImmediate)
    }
  }))
  const held = []
  server.on('connection', (connection) => held.push(connection))
  await new Promise((done) => server.listen(file, done))
  t.after(() => {
    server.close()
    for (const connection of held) connection.destroy()
  })
  const key = new Key('k', { socket: file })
  for (let i = 0; i < 3; i++) assert.equal(await key.unprotect('f', 't'), null)
  assert.equal(held.length, 1)
})

test('nothing that is Claviger', async (t) => {
  const answers = ['\r\n\r\n', '220 smtp ready\r\n\r\n', answer('not json'), answer('[]'), answer('{}'), answer('{"items":[]}'), answer('{"items":[{"ok":true}]}'),
    answer('null'), answer('', 'Content-Length: -1'), answer('', 'Content-Length: 99999999'), answer('fffffff\r\n', 'Transfer-Encoding: chunked'),
    answer('-5\r\n', 'Transfer-Encoding: chunked'), null]
  for (const text of answers) {
    const key = new Key('k', { socket: await fake(t, [text], [text]), timeout: 50 })
    await assert.rejects(key.unprotect('f', 't'), Unavailable, text)
    assert.throws(() => key.unprotectSync('f', 't'), Unavailable, text)
  }
})

test('a deadline', async (t) => {
  const key = new Key('k', { socket: await fake(t, ['HTTP/1.1 200 OK\r\n'], ['HTTP/1.1 200 OK\r\n']), timeout: 100 })
  const within = async (call) => {
    const began = performance.now()
    await assert.rejects(async () => call(), (error) => error instanceof Unavailable && error.status === 503)
    assert.ok(performance.now() - began < 1500)
  }
  await within(() => key.unprotect('f', 't'))
  await within(() => key.unprotectSync('f', 't'))
  assert.ok(at('signed').protectSync('cookie-signature', 'after one that was late'))
})

test('no socket', async () => {
  const key = new Key('k', { socket: '/nowhere' })
  const says = { name: 'claviger.Unavailable', message: /^custody does not answer at \/nowhere/, stack: /^claviger\.Unavailable: custody/ }
  await assert.rejects(key.unprotect('f', 't'), says)
  assert.throws(() => key.unprotectSync('f', 't'), says)
  const about = {}
  await watching(about, () => key.protect('f', 't').catch(() => {}))
  assert.ok(about.error instanceof Unavailable)
})

test('a secret of this start', () => {
  assert.match(randomSecret('NOT_SET'), /^[\w-]{64}$/)
  assert.notEqual(randomSecret(), randomSecret())
  process.env.OLD_SECRET = 'x'
  assert.throws(() => randomSecret('OLD_SECRET'), /OLD_SECRET is in the environment still/)
  assert.throws(() => custody({ environment: ['OLD_SECRET'] }), /OLD_SECRET/)
})

test('keygrip', async (t) => {
  for (const args of [[], ['sha256', 'base64'], ['SHA384', 'hex']]) {
    const mine = new Keygrip(at('keygrip'), ...args)
    const local = new LocalKeygrip([secret], ...(args.length ? args : ['sha1', 'base64']))
    assert.equal(mine.sign('a=größe'), local.sign('a=größe'))
    assert.deepEqual([mine.verify('a=b', local.sign('a=b')), mine.index('a=b', local.sign('a=b'))], [true, 0])
    assert.equal(mine.verify('a=c', local.sign('a=b')), false)
  }
  const keys = new Keygrip(at('keygrip'))
  const get = await serve(t, (req, res, next) => next(), (req, res) => {
    const cookies = new Cookies(req, res, { keys })
    const had = cookies.get('a', { signed: true })
    cookies.set('a', 'b', { signed: true })
    res.end(String(had))
  })
  const first = await get()
  const sent = first.headers.getSetCookie().map((line) => line.split(';')[0]).join('; ')
  assert.match(sent, new RegExp(`^a=b; a.sig=${new LocalKeygrip([secret], 'sha1', 'base64').sign('a=b')}$`))
  assert.equal(await (await get(sent)).text(), 'b')
  assert.equal(await (await get(sent.replace('a=b', 'a=c'))).text(), 'undefined')
  const away = new Keygrip(new Key('k', { socket: '/nowhere' }))
  assert.throws(() => away.sign('a=b'), Unavailable)
  assert.throws(() => away.verify('a=b', 'x'), Unavailable)
})

test('jwt', async () => {
  for (const algorithm of ['HS256', 'HS384', 'HS512']) {
    const mine = jwt(at('jwt'), { algorithm })
    const made = await mine.sign({ sub: 'alice' }, { expiresIn: 60, keyId: '2026' })
    assert.equal(jsonwebtoken.verify(made, secret, { algorithms: [algorithm] }).sub, 'alice')
    assert.equal(jsonwebtoken.decode(made, { complete: true }).header.kid, '2026')
    const claims = { sub: 'alice', iat: 1, exp: 4e9 }
    assert.equal(await mine.sign(claims), jsonwebtoken.sign(claims, secret, { algorithm }))
    const verify = (claims, other = secret, by = algorithm) => mine.verify(jsonwebtoken.sign(claims, other, { algorithm: by }))
    assert.equal((await verify({ sub: 'bob' })).sub, 'bob')
    assert.equal(await verify({ sub: 'bob' }, 'another secret'), null)
    assert.equal(await verify({ exp: 1 }), null)
    assert.equal(await verify({ nbf: 4e9 }), null)
    assert.equal(await verify({}, secret, algorithm === 'HS256' ? 'HS384' : 'HS256'), null)
    assert.equal(await verify({}, '', 'none'), null)
  }
  assert.throws(() => jwt(at('jwt'), { algorithm: 'none' }), /is not made in custody/)
})

test('seals of iron-session 8 and 9', async () => {
  const mine = ironSession(at('iron'))
  const data = { id: 5, name: 'größe' }
  for (const { sealData, unsealData } of [iron8, iron9]) {
    for (const ttl of [0, 60]) {
      assert.deepEqual(await mine.unsealData(await sealData(data, { password, ttl })), data)
      assert.deepEqual(await unsealData(await mine.sealData(data, { ttl }), { password, ttl }), data)
    }
    assert.deepEqual(await mine.unsealData(await sealData(data, { password: { 1: 'x'.repeat(32), 7: password } })), data)
    assert.deepEqual(await unsealData(await ironSession(at('iron'), { id: '7' }).sealData(data), { password: { 1: 'x'.repeat(32), 7: password } }), data)
    assert.deepEqual(await mine.unsealData(await sealData(data, { password: 'another password'.repeat(3) })), {})
  }
  await assert.rejects(mine.sealData(data, { password }), /have a password still/)
})

test('sessions of iron-session in other homes', async () => {
  const { getIronSession } = ironSession(at('iron'))
  const options = { cookieName: 'i', cookieOptions: { sameSite: 'none', domain: 'example.org' } }
  const held = new Map()
  const store = { get: (name) => held.get(name), set: (name, value, options) => held.set(name, { name, value, options }) }
  const session = await getIronSession(store, options)
  session.user = 'alice'
  await session.save()
  assert.equal((await iron8.getIronSession(store, { ...options, password })).user, 'alice')
  assert.deepEqual(held.get('i').options, { httpOnly: true, secure: true, sameSite: 'none', path: '/', domain: 'example.org', maxAge: 14 * 24 * 3600 - 60 })

  const lines = async (get, extra) => {
    const request = new Request('http://example.org/', { headers: { cookie: `a=b; i=${held.get('i').value}` } })
    const response = new Response()
    const session = await get(request, response, { ...options, ...extra })
    assert.equal(session.user, 'alice')
    await session.save()
    session.destroy()
    return response.headers.getSetCookie().map((line) => line.replace(/Fe26[^;]+/, ''))
  }
  assert.deepEqual(await lines(getIronSession, {}), await lines(iron8.getIronSession, { password }))
  session.user = 'x'.repeat(5000)
  await assert.rejects(session.save(), /browsers take 4096/)
  for (const bad of [{ ...options, password }, {}]) await assert.rejects(getIronSession(store, bad))
})

test('heads of every form are translated', async (t) => {
  const middleware = custody({ signed: at('signed') })
  const { createHmac } = await import('node:crypto')
  const sign = (key, value) => `s:${value}.${createHmac('sha256', key).update(value).digest('base64').replace(/=+$/, '')}`
  const mine = `a=${encodeURIComponent(sign(middleware.secret, 'v'))}; Path=/`
  const forms = {
    object: (res) => res.writeHead(201, { 'Set-Cookie': [mine, 'b=c'], 'X-One': '1' }).end('ok'),
    reason: (res) => res.writeHead(201, 'Fine', { 'set-cookie': [mine, 'b=c'], 'X-One': '1' }).end('ok'),
    pairs: (res) => res.writeHead(201, [['Set-Cookie', mine], ['Set-Cookie', 'b=c'], ['X-One', '1']]).end('ok'),
    flat: (res) => res.writeHead(201, ['Set-Cookie', mine, 'Set-Cookie', 'b=c', 'X-One', '1']).end('ok'),
    set: (res) => res.setHeader('Set-Cookie', [mine, 'b=c']).setHeader('X-One', '1').writeHead(201).end('ok'),
    implicit: (res) => Object.assign(res.setHeader('Set-Cookie', [mine, 'b=c']).setHeader('X-One', '1'), { statusCode: 201 }).end('ok'),
    flushed: (res) => {
      Object.assign(res.setHeader('Set-Cookie', [mine, 'b=c']).setHeader('X-One', '1'), { statusCode: 201 }).flushHeaders()
      res.end('ok')
    },
  }
  for (const [name, form] of Object.entries(forms)) {
    const got = await (await serve(t, middleware, (req, res) => form(res)))()
    assert.deepEqual([got.status, got.headers.get('x-one'), await got.text()], [201, '1', 'ok'], name)
    assert.deepEqual(got.headers.getSetCookie(), [`a=${encodeURIComponent(sign(secret, 'v'))}; Path=/`, 'b=c'], name)
  }
})

test('what is signed here alone is not taken from outside', async (t) => {
  const middleware = custody({ signed: at('signed'), keygrip: at('keygrip') })
  const get = await serve(t, middleware, (req, res) => res.end(req.headers.cookie))
  const theirs = `a=s:v.x; a=${encodeURIComponent(await at('signed').protect('express.cookie', 'v'))}; q="s%3Av.x"; b=c; d=${encodeURIComponent('s:é')}; %=%; novalue; c.sig=x; b.sig=y`
  const inside = await (await get(theirs)).text()
  assert.match(inside, /^a=s%3Av\.x\.-; a=s%3Av\.[^;]{43,}; q=s%3Av\.x\.-; b=c; d=s%3A%C3%A9\.-; %=%; novalue; c\.sig=x; b\.sig=-$/)
  const again = await (await get(inside.split('; ')[1])).text() // what the application has is of no use outside
  assert.match(again, /^a=s%3Av\.[^;]{43,}\.-$/)
  assert.equal(await (await get('a=b')).text(), 'a=b')
  const many = Array.from({ length: 300 }, (_, i) => `n${i}=1; n${i}.sig=${'x'.repeat(27)}`).join('; ')
  assert.equal(await (await get(many)).text(), many.replaceAll('x'.repeat(27), '-'))
})

test('only some cookies', async (t) => {
  const middleware = custody({ signed: at('signed'), only: ['mine'] })
  const get = await serve(t, middleware, (req, res) => res.setHeader('Set-Cookie', `other=s:v.${'x'.repeat(43)}`).end(req.headers.cookie))
  const got = await get('other=s:v.x; mine=s:v.x')
  assert.equal(await got.text(), 'other=s:v.x; mine=s%3Av.x.-')
  assert.deepEqual(got.headers.getSetCookie(), [`other=s:v.${'x'.repeat(43)}`])
})
