import type { Key } from './index.js'

export const VARIABLES: string[]

export interface Codec {
  encode(params: { token?: object; maxAge?: number; salt?: string; secret?: unknown }): Promise<string>
  decode(params: { token?: string; salt?: string; secret?: unknown }): Promise<any>
}

export function nextauth(key: Key): Codec
export function authjs(key: Key): Codec

export function guard<A extends any[], R>(handler: (...args: A) => R | Promise<R>): (...args: A) => Promise<R>
