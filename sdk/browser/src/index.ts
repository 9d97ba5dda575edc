/**
 * A session in the browser whose key no script can read (RFC 9449, DPoP).
 *
 * It makes a key pair for each session, sends each request with a proof by it,
 * and ends the session when the key is lost. By default key and tokens are in a
 * worker: a script in the page can ask for requests while it runs, and can
 * carry nothing away. A browser keeps such keys in its profile in clear, so
 * that whoever reads the disk has them; `level` says "script-resistant".
 */

import type { Attempt } from "./attempts.js";
import { answer, Core, SessionError, type Ask, type Configuration, type Ending, type Facts, type Outgoing } from "./core.js";
import type { Crossing, Say, Told } from "./worker.js";

export { SessionError };
export type { Attempt, Configuration, Ending, Facts };
export type { Algorithm } from "./proof.js";

/** How a session is opened. */
export interface Options extends Configuration {
  /**
   * Where the key is: in a worker of this library's (true, the default), in one
   * that a bundler made of "@claviger/browser/worker", or in the page (false).
   */
  worker?: boolean | Worker;
}

type Asking = (ask: Ask, signal?: AbortSignal) => Promise<unknown>;

/** A session. It dispatches "ended", a CustomEvent whose detail is an Ending. */
export class Session extends EventTarget {
  readonly #ask: Asking;

  constructor(options: Options) {
    super();
    const { worker = true, ...configuration } = options;
    const ended = (reason: Ending) => this.dispatchEvent(new CustomEvent("ended", { detail: reason }));
    if (worker === false) {
      const core = new Core(configuration, "page", ended);
      this.#ask = (ask, signal) => answer(core, ask, signal);
      return;
    }
    const side = worker === true ? new Worker(new URL("./worker.js", import.meta.url), { type: "module" }) : worker;
    side.postMessage({ configuration } satisfies Told);
    this.#ask = inWorker(side, ended);
  }

  /** What may be known of the session. */
  facts(): Promise<Facts> {
    return this.#ask({ op: "facts" }) as Promise<Facts>;
  }

  /** Makes a new key, and returns the URL where the person logs in. */
  login(extra: Record<string, string> = {}): Promise<string> {
    return this.#ask({ op: "login", extra }) as Promise<string>;
  }

  /** Takes the URL that the person came back to. */
  async callback(answer: string): Promise<void> {
    await this.#ask({ op: "callback", answer });
  }

  /** As the browser's own fetch, with the token and a proof. Bodies are read whole before they are sent. */
  async fetch(input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> {
    const request = new Request(input, init);
    request.signal.throwIfAborted();
    const body = request.body === null && init.body == null ? undefined : await request.arrayBuffer();
    const out: Outgoing = {
      url: request.url,
      method: request.method,
      headers: [...request.headers],
      body,
      credentials: init.credentials ?? "omit",
    };
    const got = (await this.#ask({ op: "fetch", out }, request.signal)) as Response | Crossing;
    if (got instanceof Response) return got;
    const { status, statusText, headers, body: received } = got;
    return new Response(received, { status, statusText, headers });
  }

  /** Ends the session: here, in the other pages of the origin, and at the server. */
  async logout(): Promise<void> {
    await this.#ask({ op: "logout" });
  }

  /** Makes every attempt to export the session's key, each beside an extractable key that has to leak. */
  prove(): Promise<Attempt[]> {
    return this.#ask({ op: "prove" }) as Promise<Attempt[]>;
  }
}

function inWorker(worker: Worker, ended: (reason: Ending) => void): Asking {
  const waiting = new Map<number, { resolve: (value: unknown) => void; reject: (reason: unknown) => void }>();
  let next = 0;
  worker.addEventListener("message", (e: MessageEvent<Say>) => {
    const say = e.data;
    if ("ended" in say) return ended(say.ended);
    const asked = waiting.get(say.id);
    waiting.delete(say.id);
    if ("value" in say) return asked?.resolve(say.value);
    const { code, name, message } = say.error;
    return asked?.reject(
      code === undefined ? Object.assign(new (name === "TypeError" ? TypeError : Error)(message), { name }) : new SessionError(code as SessionError["code"], message),
    );
  });
  worker.addEventListener("error", () => {
    for (const { reject } of waiting.values()) reject(new SessionError("no-session", "the session's worker cannot run: serve worker.js beside this script"));
    waiting.clear();
  });
  return (ask, signal) =>
    new Promise((resolve, reject) => {
      const id = next++;
      waiting.set(id, { resolve, reject });
      signal?.addEventListener("abort", () => worker.postMessage({ abort: id } satisfies Told));
      worker.postMessage({ id, ask } satisfies Told, ask.op === "fetch" && ask.out.body !== undefined ? [ask.out.body] : []);
    });
}
