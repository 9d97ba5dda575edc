// A server of Node with iron-session. Its password comes from standard input
// (local), or there is none (custody).
//
// Usage: iron_app.mjs local|custody [KEY SOCKET]

import fs from 'node:fs'
import http from 'node:http'
import * as iron from 'iron-session'

const [mode, name, socket] = process.argv.slice(2)
const options = { cookieName: 'iron', cookieOptions: { secure: false } }
let { getIronSession, sealData, unsealData } = iron
let password
if (mode === 'local') {
  password = fs.readFileSync(0, 'utf8').trim()
  options.password = password
} else {
  const { Key } = await import('claviger')
  const { ironSession } = await import('claviger/iron-session')
  ;({ getIronSession, sealData, unsealData } = ironSession(new Key(name, { socket })))
}

const pages = {
  '/login': async (session) => {
    Object.assign(session, { user: 'alice', cart: ['größe', 3] })
    await session.save()
    return 'in'
  },
  '/me': (session) => (session.user ? `${session.user} ${session.cart}` : '-'),
  '/out': (session) => {
    session.destroy()
    return 'out'
  },
  '/seal': () => sealData({ id: 5 }, { password, ttl: 60 }),
  '/open': async (session, req) => JSON.stringify(await unsealData(req.headers['x-token'], { password })),
}

const server = http.createServer(async (req, res) => {
  try {
    const session = await getIronSession(req, res, options)
    res.end(await pages[req.url](session, req))
  } catch (error) {
    console.error(error)
    res.writeHead(error.status ?? 500).end()
  }
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
