// The text of cookies, without a dependency.

/** Returns the cookies of a Cookie header as [name, text] in their order; text is as it travels. */
export function parse(header = '') {
  return header.split(';').map((part) => {
    const at = part.indexOf('=')
    return at < 0 ? ['', part.trim()] : [part.slice(0, at).trim(), part.slice(at + 1).trim()]
  })
}

/** Returns the Cookie header of what parse returned. */
export function format(cookies) {
  return cookies.map(([name, text]) => (name ? `${name}=${text}` : text)).join('; ')
}

/** Returns what the text of a cookie stands for. */
export function decode(text) {
  if (text[0] === '"' && text.at(-1) === '"') text = text.slice(1, -1)
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

/** Returns a Set-Cookie header. The options are those of the package cookie. */
export function serialize(name, value, options = {}) {
  const { maxAge, domain, path, expires, httpOnly, secure, partitioned, priority } = options
  const sameSite = options.sameSite === true ? 'strict' : options.sameSite
  const word = (text) => text[0].toUpperCase() + text.slice(1).toLowerCase()
  const parts = [`${name}=${encodeURIComponent(value)}`]
  if (maxAge !== undefined && maxAge !== null) parts.push(`Max-Age=${Math.floor(maxAge)}`)
  if (domain) parts.push(`Domain=${domain}`)
  if (path) parts.push(`Path=${path}`)
  if (expires) parts.push(`Expires=${expires.toUTCString()}`)
  if (httpOnly) parts.push('HttpOnly')
  if (secure) parts.push('Secure')
  if (partitioned) parts.push('Partitioned')
  if (priority) parts.push(`Priority=${word(priority)}`)
  if (sameSite) parts.push(`SameSite=${word(sameSite)}`)
  const text = parts.join('; ')
  if (!/^[\x20-\x7e]*$/.test(text) || text.split(';').length !== parts.length) throw new TypeError(`the cookie ${name} cannot be written`)
  return text
}
