import type { Key } from './index.js'

export interface SealOptions {
  /** Seconds; 0 is without an end. */
  ttl?: number
}

export interface CookieOptions {
  domain?: string
  path?: string
  httpOnly?: boolean
  secure?: boolean
  sameSite?: boolean | 'lax' | 'strict' | 'none'
  partitioned?: boolean
  priority?: 'low' | 'medium' | 'high'
  maxAge?: number
  expires?: Date
}

export interface SessionOptions extends SealOptions {
  cookieName: string
  cookieOptions?: CookieOptions
}

export interface CookieStore {
  get(name: string): { name: string; value: string } | undefined
  set(name: string, value: string, options?: CookieOptions): unknown
}

export type IronSession<T> = T & {
  save(): Promise<void>
  destroy(): void
  updateConfig(options: SessionOptions): void
}

export function ironSession(key: Key, options?: { id?: string }): {
  sealData(data: unknown, options?: SealOptions): Promise<string>
  unsealData<T>(seal: string, options?: SealOptions): Promise<T>
  getIronSession<T extends object>(store: CookieStore, options: SessionOptions): Promise<IronSession<T>>
  getIronSession<T extends object>(request: object, response: object, options: SessionOptions): Promise<IronSession<T>>
}
