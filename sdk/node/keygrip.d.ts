import type { Key } from './index.js'

export class Keygrip {
  constructor(key: Key, digest?: string, encoding?: string)
  sign(data: string): string
  verify(data: string, digest: string): boolean
  index(data: string, digest: string): number
}
