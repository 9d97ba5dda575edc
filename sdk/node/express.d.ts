import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Key } from './index.js'

export interface Custody {
  (request: IncomingMessage, response: ServerResponse, next: (error?: unknown) => void): void
  /** For cookie-parser and express-session. */
  readonly secret: string
  /** For cookie-session. */
  readonly keys: string[]
}

export function custody(options: { signed?: Key; keygrip?: Key; digest?: string; only?: string[]; environment?: string[] }): Custody
