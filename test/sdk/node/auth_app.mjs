// NextAuth 4 and Auth.js 5 with sign-in by credentials, each by its own handler,
// under /4/ and /5/. Their secret comes from standard input (local), or is a random
// one (custody).
//
// Usage: auth_app.mjs local|custody [KEY SOCKET]

import fs from 'node:fs'
import { createRequire } from 'node:module'
import { Auth } from '@auth/core'
import Credentials5 from '@auth/core/providers/credentials'
import { getToken as getToken5 } from '@auth/core/jwt'
import cookieParser from 'cookie-parser'
import express from 'express4'

const require = createRequire(import.meta.url)
const { default: NextAuth4 } = require('next-auth')
const { default: Credentials4 } = require('next-auth/providers/credentials')
const { getToken: getToken4 } = require('next-auth/jwt')

const [mode, name, socket] = process.argv.slice(2)
const credentials = { credentials: { name: {} }, authorize: ({ name }) => ({ id: '7', name }) }
const config4 = { providers: [Credentials4(credentials)], session: { strategy: 'jwt' } }
const config5 = { providers: [Credentials5(credentials)], session: { strategy: 'jwt' }, trustHost: true, basePath: '/5' }
let guard = (handler) => handler
if (mode === 'local') {
  config4.secret = config5.secret = fs.readFileSync(0, 'utf8').trim()
} else {
  const { Key, randomSecret } = await import('claviger')
  const auth = await import('claviger/auth')
  const key = new Key(name, { socket })
  config4.secret = config5.secret = randomSecret(...auth.VARIABLES)
  config4.jwt = auth.nextauth(key)
  config5.jwt = auth.authjs(key)
  guard = auth.guard
}

const nextAuth4 = guard((req, res) => NextAuth4(req, res, config4))
const auth5 = guard((request) => Auth(request, config5))

const app = express()
app.use(cookieParser(), express.urlencoded({ extended: false }))
app.all('/4/*', (req, res, next) => {
  req.query.nextauth = req.path.split('/').slice(2)
  nextAuth4(req, res).catch(next)
})
app.all('/5/*', async (req, res, next) => {
  try {
    const body = req.method === 'POST' ? new URLSearchParams(req.body) : undefined
    const headers = { ...req.headers }
    delete headers['content-length']
    const answer = await auth5(new Request(new URL(req.url, process.env.NEXTAUTH_URL), { method: req.method, headers, body }))
    res.status(answer.status)
    for (const [name, value] of answer.headers) res.append(name, value)
    res.send(await answer.text())
  } catch (error) {
    next(error)
  }
})
for (const [path, getToken, { secret, jwt }] of [['/token4', getToken4, config4], ['/token5', getToken5, config5]]) {
  app.get(path, (req, res, next) => guard(getToken)({ req, secret, decode: jwt?.decode }).then((token) => res.send(token?.name ?? '-'), next))
}
const server = app.listen(0, '127.0.0.1', () => {
  const { port } = server.address()
  process.env.NEXTAUTH_URL = `http://127.0.0.1:${port}/4`
  console.log(port)
})
