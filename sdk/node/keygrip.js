/**
 * A Keygrip whose keys are in custody, for Koa (app.keys) and for the package
 * cookies. Its interface is synchronous: the process waits for each answer. With
 * cookie-session take the middleware of ./express.js instead, since cookie-session
 * hides the errors of its keys.
 */
export class Keygrip {
  #key
  #params

  /** digest and encoding are those of Keygrip: sha1 and base64. */
  constructor(key, digest = 'sha1', encoding = 'base64') {
    this.#key = key
    this.#params = { digest: digest.toLowerCase(), encoding: encoding === 'base64' ? 'base64url' : encoding }
    key.prepare()
  }

  sign(data) {
    return this.#key.protectSync('keygrip', '', this.#over(data))
  }

  verify(data, digest) {
    return this.index(data, digest) > -1
  }

  /** 0 for the version that signs now, 1 for an older one, whose cookies are signed again, -1 for neither. */
  index(data, digest) {
    const found = this.#key.unprotectSync('keygrip', digest, this.#over(data))
    return found ? Number(found.renew) : -1
  }

  #over(data) {
    return { ...this.#params, over: Buffer.from(data) }
  }
}
