/**
 * JWTs with HS256, HS384 or HS512, whose secret is in custody.
 */

import { ClavigerError } from './index.js'

const DIGESTS = { HS256: 'sha256', HS384: 'sha384', HS512: 'sha512' }

/** Returns sign and verify for a Key and one algorithm. */
export function jwt(key, { algorithm = 'HS256' } = {}) {
  const digest = DIGESTS[algorithm]
  if (!digest) throw new ClavigerError('unsupported', `${algorithm} is not made in custody`, `use ${Object.keys(DIGESTS).join(', ')}`)

  return {
    /** Resolves to the token of claims; expiresIn is in seconds. The claim iat is set when it is not there. */
    sign(claims, { expiresIn, keyId } = {}) {
      const iat = claims.iat ?? Math.floor(Date.now() / 1000)
      const all = { ...claims, iat, ...(expiresIn !== undefined && { exp: iat + expiresIn }) }
      return key.protect('jwt', JSON.stringify(all), { digest, ...(keyId && { keyId }) })
    },

    /** Resolves to the claims, or to null when the token is not valid, not yet, or no longer. */
    async verify(token) {
      const found = await key.unprotect('jwt', token, { digest })
      if (!found) return null
      const claims = JSON.parse(found.payload.toString())
      return claims.nbf > Date.now() / 1000 ? null : claims
    },
  }
}
