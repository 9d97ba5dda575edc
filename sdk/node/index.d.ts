export const SOCKET: string

export class ClavigerError extends Error {
  constructor(code: string, message: string, hint?: string, options?: ErrorOptions)
  readonly code: string
  readonly hint: string
  readonly status: number
}

export class Unavailable extends ClavigerError {}

export function randomSecret(...variables: string[]): string

export function watching<T>(about: { error?: ClavigerError }, run: () => T): T

/** The parameters of a format, as the API names them. */
export type Params = Record<string, string | number | boolean | Date | Uint8Array | string[]>

export interface Found {
  payload: Buffer
  /** Of the key, that made the token. */
  version: number
  /** A newer version makes tokens now: make this one again where that can be. */
  renew: boolean
  issued?: Date
  expires?: Date
}

export class Key {
  constructor(name: string, options?: { socket?: string; timeout?: number })
  readonly name: string
  readonly socket: string
  readonly timeout: number
  protect(format: string, payload: string | Uint8Array, params?: Params): Promise<string>
  unprotect(format: string, token: string, params?: Params): Promise<Found | null>
  unprotectAll(format: string, tokens: string[], params?: Params): Promise<(Found | null)[]>
  protectSync(format: string, payload: string | Uint8Array, params?: Params): string
  unprotectSync(format: string, token: string, params?: Params): Found | null
  prepare(): void
}
