// Stops a response on its way out.

/**
 * Calls before() when the head of a response is about to be written, after all
 * others who were to change it. When that throws, no cookie is set, and in the
 * place of the response goes one that says no more than its status. Whoever writes
 * the response never sees the error: they may be far from any handler of errors.
 */
export function guard(response, before) {
  const { writeHead, write, end } = response
  let passed = false, failure, writing = false

  response.writeHead = function (status, ...rest) {
    if (failure) return response
    if (!passed) {
      setHeaders(response, rest.at(-1))
      try {
        before()
      } catch (error) {
        failure = error
        if (writing) throw error // to guarded, which Node would else go on to write for
        answer()
        return response
      }
      passed = true
      rest = rest.filter((value) => typeof value === 'string')
    }
    return writeHead.call(response, status, ...rest)
  }
  response.write = guarded(write, true)
  response.end = guarded(end, response)

  function guarded(original, result) {
    return function (...args) {
      if (failure) { // an answer went out in the place of what is written
        const done = args.find((value) => typeof value === 'function')
        if (done) process.nextTick(done)
        return result
      }
      try {
        writing = true
        return original.apply(response, args)
      } catch (error) {
        if (error !== failure) throw error
        answer()
        return result
      } finally {
        writing = false
      }
    }
  }

  function answer() {
    console.error(failure)
    for (const name of response.getHeaderNames()) response.removeHeader(name)
    const text = 'custody of keys is not available\n'
    writeHead.call(response, failure.status ?? 500, { 'Content-Type': 'text/plain', 'Content-Length': text.length, 'Cache-Control': 'no-store' })
    end.call(response, text)
  }
}

/** Sets the headers that writeHead was given, in any of its forms. */
function setHeaders(response, headers) {
  if (headers === null || typeof headers !== 'object') return
  if (!Array.isArray(headers)) headers = Object.entries(headers)
  else if (!Array.isArray(headers[0])) headers = headers.flatMap((name, i) => i % 2 ? [] : [[name, headers[i + 1]]])
  const fresh = new Set()
  for (const [name, value] of headers) {
    if (value === undefined) continue
    if (fresh.has(name.toLowerCase())) response.appendHeader(name, value)
    else response.setHeader(name, value)
    fresh.add(name.toLowerCase())
  }
}
