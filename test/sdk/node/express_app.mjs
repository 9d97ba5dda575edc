// An Express application with cookie-parser, express-session and cookie-session.
// It signs with the secrets that it reads from standard input, one a line (local),
// or not at all (custody).
//
// Usage: express_app.mjs local|custody express|express4 DATA [SIGNED KEYGRIP SOCKET]

import fs from 'node:fs'
import path from 'node:path'
import cookieParser from 'cookie-parser'
import cookieSession from 'cookie-session'
import session from 'express-session'

const [mode, version, data, signed, keygrip, socket] = process.argv.slice(2)
const { default: express } = await import(version)
const app = express()

// Files outlive a start of the application, as a store does.
class Files extends session.Store {
  file(id) { return path.join(data, encodeURIComponent(id)) }
  get(id, done) { fs.readFile(this.file(id), (error, text) => (error ? done(null, null) : done(null, JSON.parse(text)))) }
  set(id, value, done) { fs.writeFile(this.file(id), JSON.stringify(value), done) }
  destroy(id, done) { fs.rm(this.file(id), { force: true }, done) }
}

let secret, keys
if (mode === 'local') {
  const [one, two] = fs.readFileSync(0, 'utf8').split('\n')
  secret = one
  keys = [two]
} else {
  const { Key } = await import('claviger')
  const { custody } = await import('claviger/express')
  const cookies = custody({ signed: new Key(signed, { socket }), keygrip: new Key(keygrip, { socket }), environment: ['SESSION_SECRET'] })
  app.use(cookies)
  ;({ secret, keys } = cookies)
}
app.use(cookieParser(secret))

const sessions = express.Router()
sessions.use(session({ secret, store: new Files(), resave: false, saveUninitialized: false, cookie: { maxAge: 3600_000 } }))
app.use('/es', sessions)
const cookies = express.Router()
cookies.use(cookieSession({ name: 'cs', keys, maxAge: 3600_000 }))
app.use('/cs', cookies)
for (const router of [sessions, cookies]) {
  router.get('/login', (req, res) => {
    req.session.user = 'alice'
    req.session.cart = ['größe', 3]
    res.send('in')
  })
  router.get('/login-empty', (req, res) => { // an end without a body
    req.session.user = 'alice'
    res.status(204).end()
  })
  router.get('/me', (req, res) => res.send(req.session.user ? `${req.session.user} ${req.session.cart}` : '-'))
  router.get('/out', (req, res) => {
    if (router === sessions) return req.session.destroy(() => res.send('out'))
    req.session = null
    res.send('out')
  })
}

app.get('/set', (req, res) => {
  res.cookie('pref', 'dark. größe', { signed: true, httpOnly: true })
  res.cookie('json', { size: 7 }, { signed: true })
  res.cookie('plain', 's:uff')
  res.send('set')
})
app.get('/stream', (req, res) => {
  res.cookie('pref', 'streamed', { signed: true })
  for (let i = 0; i < 100; i++) res.write(`line ${i}\n`)
  res.end()
})
app.get('/pref', (req, res) => res.send(`${req.signedCookies.pref ?? '-'} ${req.signedCookies.json?.size ?? '-'}`))
app.get('/foreign', (req, res) => { // a package that was forgotten
  req.secret = 'another secret'
  res.cookie('pref', 'dark', { signed: true })
  res.send('set')
})
app.get('/fail', (req, res, next) => next(new Error('of the application')))

app.get('/large', (req, res) => res.send(Buffer.alloc(10 << 20, 'x')))

const server = app.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => console.log(server.address().port))
server.on('upgrade', (req, socket) => { // an echo
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n')
  socket.pipe(socket)
})
