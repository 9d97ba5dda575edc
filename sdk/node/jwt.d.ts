import type { Key } from './index.js'

export function jwt(key: Key, options?: { algorithm?: 'HS256' | 'HS384' | 'HS512' }): {
  sign(claims: object, options?: { expiresIn?: number; keyId?: string }): Promise<string>
  verify(token: string): Promise<any>
}
