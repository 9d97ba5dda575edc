// The session's side of the worker: it has the key and the tokens, and the page
// has neither.

import { answer, Core, SessionError, type Ask, type Configuration, type Ending } from "./core.js";

/** The first message has the configuration, and the others what is asked. */
export type Told = { configuration: Configuration } | { id: number; ask: Ask } | { abort: number };

/** What the worker says. */
export type Say =
  | { id: number; value: unknown }
  | { id: number; error: { name: string; message: string; code?: string } }
  | { ended: Ending };

/** A response, as it crosses to the page. */
export interface Crossing {
  status: number;
  statusText: string;
  headers: [string, string][];
  body: ReadableStream<Uint8Array> | ArrayBuffer | null;
}

const scope = self as unknown as { postMessage(message: Say, transfer?: Transferable[]): void; onmessage: unknown };
const running = new Map<number, AbortController>();
let core: Core | undefined;

async function cross(response: Response): Promise<[Crossing, Transferable[]]> {
  const { status, statusText, body } = response;
  const crossing: Crossing = { status, statusText, headers: [...response.headers], body };
  if (body === null) return [crossing, []];
  try {
    structuredClone(new ReadableStream(), { transfer: [new ReadableStream()] });
    return [crossing, [body]];
  } catch {
    const whole = await response.arrayBuffer(); // where streams cannot cross
    return [{ ...crossing, body: whole }, [whole]];
  }
}

scope.onmessage = async (e: MessageEvent<Told>) => {
  const told = e.data;
  if ("configuration" in told) {
    core = new Core(told.configuration, "worker", (ended) => scope.postMessage({ ended }));
    return;
  }
  if ("abort" in told) {
    running.get(told.abort)?.abort();
    return;
  }
  const { id, ask } = told;
  const controller = new AbortController();
  running.set(id, controller);
  try {
    if (core === undefined) throw new SessionError("no-session", "the worker was told of no session");
    const value = await answer(core, ask, controller.signal);
    if (value instanceof Response) {
      const [crossing, transfer] = await cross(value);
      scope.postMessage({ id, value: crossing }, transfer);
    } else {
      scope.postMessage({ id, value });
    }
  } catch (x) {
    const { name, message } = x instanceof Error ? x : new Error(String(x));
    scope.postMessage({ id, error: { name, message, ...(x instanceof SessionError ? { code: x.code } : {}) } });
  } finally {
    running.delete(id);
  }
};
