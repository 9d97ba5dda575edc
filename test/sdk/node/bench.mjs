// Measures what a request to Express costs with its signing in custody, next to
// local signing, in one run: node bench.mjs [DIRECTORY OF THE PROGRAMS] [ROUNDS]
//
// Two processes, one of each kind, answer in turns, so that both meet the same
// machine. It prints the median request of each, the 10th percentile, which a busy
// machine disturbs least, and the ratios.

import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import http from 'node:http'
import os from 'node:os'
import path from 'node:path'
import { Key } from 'claviger'

const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname)
const [bin = path.join(here, '../../../bin'), rounds = '60'] = process.argv.slice(2)
const claviger = path.join(bin, 'claviger')
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bench'))
const agent = new http.Agent({ keepAlive: true })
const children = []

function start(command, args, input = '') {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'ignore'] })
  children.push(child)
  child.stdin.end(input)
  return once(child.stdout, 'data').then(([text]) => text.toString())
}

/** Resolves to { took, cookies, text }; took is in microseconds. */
function get(port, page, cookie = '') {
  const began = performance.now()
  return new Promise((resolve, reject) => {
    http.get({ agent, port, path: page, headers: { cookie } }, async (response) => {
      let text = ''
      for await (const chunk of response) text += chunk
      const took = (performance.now() - began) * 1000
      const cookies = (response.headers['set-cookie'] ?? []).map((line) => line.split(';')[0]).join('; ')
      resolve({ took, cookies, text: response.statusCode === 200 ? text : `status ${response.statusCode}` })
    }).on('error', reject)
  })
}

function quantile(times, part) {
  return [...times].sort((a, b) => a - b)[Math.floor(times.length * part)]
}

async function compare(name, ports, prefix, rounds) {
  const times = { local: [], custody: [] }
  const cookies = {}
  for (const mode in times) cookies[mode] = (await get(ports[mode], `${prefix}/login`)).cookies
  for (let i = -2; i < rounds; i++) { // the first ones warm up
    for (const mode in times) {
      for (let n = 0; n < 10; n++) {
        const { took, text } = await get(ports[mode], `${prefix}/me`, cookies[mode])
        if (text !== 'alice größe,3') throw new Error(`${mode}: ${text}`)
        if (i >= 0) times[mode].push(took)
      }
    }
  }
  for (const [title, part] of [['median', 0.5], ['10th percentile', 0.1]]) {
    const [local, custody] = Object.values(times).map((all) => quantile(all, part))
    console.log(`${name.padEnd(16)} ${title.padEnd(16)} ${local.toFixed(0).padStart(9)} ${custody.toFixed(0).padStart(11)} ${(custody / local).toFixed(2).padStart(7)}`)
  }
}

async function each(title, call, rounds) {
  const times = []
  for (let i = 0; i < rounds * 5; i++) {
    const began = performance.now()
    await call()
    times.push((performance.now() - began) * 1000)
  }
  console.log(`${title.padEnd(52)} ${quantile(times, 0.5).toFixed(0)} us`)
}

try {
  const socket = (await start(claviger, ['dev', '--dir', directory, '--listen', '', '--quiet'])).split('\n')[0].replace('export CLAVIGER_ADDR=unix://', '')
  const pin = fs.readFileSync(path.join(directory, 'identity'), 'utf8').trim()
  const secret = randomBytes(40).toString('base64url')
  for (const set of ['cookie-signature', 'keygrip']) {
    execFileSync(claviger, ['--address', `unix://${socket}`, 'state', 'adopt', `dev/shop/${set}`, '--set', set, '--pin', pin], { input: secret, stdio: ['pipe', 'ignore', 'inherit'] })
  }
  const app = path.join(here, 'express_app.mjs')
  const ports = {
    local: Number(await start(process.execPath, [app, 'local', 'express', directory], `${secret}\n${secret}\n`)),
    custody: Number(await start(process.execPath, [app, 'custody', 'express', directory, 'dev/shop/cookie-signature', 'dev/shop/keygrip', socket])),
  }
  console.log('a page of a visitor who is known   local us  custody us   ratio')
  await compare('express-session', ports, '/es', Number(rounds))
  await compare('cookie-session', ports, '/cs', Number(rounds))
  const key = new Key('dev/shop/cookie-signature', { socket })
  const token = await key.protect('express.cookie', 'x')
  await each('one check', () => key.unprotect('express.cookie', token), Number(rounds))
  await each('one check that the process waits for', () => key.unprotectSync('express.cookie', token), Number(rounds))
  await each('one token made, and recorded on disk', () => key.protect('express.cookie', 'x'), Number(rounds))
  console.log(`load ${os.loadavg()[0].toFixed(1)} on ${os.cpus().length} cores, Node ${process.version}`)
} finally {
  agent.destroy()
  for (const child of children.reverse()) child.kill()
  await Promise.all(children.map((child) => child.exitCode ?? once(child, 'exit')))
  fs.rmSync(directory, { recursive: true, force: true })
}
