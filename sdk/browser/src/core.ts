// A session, where its key is: in the worker, or in the page.

import { attempts, type Attempt } from "./attempts.js";
import { createKey, prove, random, sha256, type Algorithm } from "./proof.js";
import { databaseStore, memoryStore, type SessionRecord, type Store } from "./store.js";

/** What a session needs to know of its servers. */
export interface Configuration {
  /** Where people log in (RFC 6749, 3.1). */
  authorizationEndpoint: string;
  tokenEndpoint: string;
  /** RFC 7009; without one, logout ends the session here alone. */
  revocationEndpoint?: string;
  clientId: string;
  redirectUri: string;
  scope?: string;
  /** Where the access token may go, such as "https://api.example.com". */
  origins: string[];
  /** Default "ES256". */
  algorithm?: Algorithm;
  /** "indexeddb" lasts over reloads, and every page of the origin shares it. Default "indexeddb". */
  store?: "indexeddb" | "memory";
  /** Tells sessions of one origin apart. Default "default". */
  name?: string;
}

/** Why a session ended. */
export type Ending = "logout" | "refused" | "key-lost";

/** An error of this library. */
export class SessionError extends Error {
  constructor(
    readonly code: "no-session" | "origin" | "authorization" | "token" | "unreachable",
    message: string,
  ) {
    super(message);
    this.name = "SessionError";
  }
}

/** A request that can be sent twice. */
export interface Outgoing {
  url: string;
  method: string;
  headers: [string, string][];
  body?: ArrayBuffer | undefined;
  credentials: RequestCredentials;
}

/** What a page may know of its session. */
export interface Facts {
  state: "none" | "open";
  algorithm: Algorithm | undefined;
  thumbprint: string | undefined;
  /** Where the handle of the key is. */
  place: "worker" | "page";
  store: "indexeddb" | "memory";
  /** No script can read the key. Whoever reads the browser's profile can. */
  level: "script-resistant";
  /** Seconds by which the servers' clock is ahead of this one, as far as is known. */
  clockOffset: number;
}

const maxOrigins = 64;

export class Core {
  readonly #c: Configuration;
  readonly #store: Store;
  readonly #name: string;
  readonly #place: "worker" | "page";
  readonly #ended: (reason: Ending) => void;
  readonly #channel: BroadcastChannel | undefined;
  readonly #nonces = new Map<string, string>(); // by origin, oldest first
  #offset = 0;
  #had = false; // a session was here

  constructor(c: Configuration, place: "worker" | "page", ended: (reason: Ending) => void) {
    this.#c = c;
    this.#name = "claviger:" + (c.name ?? "default");
    this.#place = place;
    this.#ended = ended;
    const shared = c.store !== "memory";
    this.#store = shared ? databaseStore(this.#name) : memoryStore();
    if (shared) {
      this.#channel = new BroadcastChannel(this.#name);
      this.#channel.onmessage = (e: MessageEvent<Ending>) => this.#end(e.data);
    }
  }

  async facts(): Promise<Facts> {
    const record = await this.#record();
    return {
      state: record?.accessToken === undefined ? "none" : "open",
      algorithm: record?.key.algorithm,
      thumbprint: record?.key.thumbprint,
      place: this.#place,
      store: this.#c.store ?? "indexeddb",
      level: "script-resistant",
      clockOffset: this.#offset,
    };
  }

  /** Makes the key of a new session and returns where the person logs in. */
  async login(extra: Record<string, string>): Promise<string> {
    const key = await createKey(this.#c.algorithm ?? "ES256");
    const pending = { state: random(), verifier: random() + random() };
    await this.#store.put({ key, pending });
    const url = new URL(this.#c.authorizationEndpoint);
    const query = {
      ...extra,
      response_type: "code",
      client_id: this.#c.clientId,
      redirect_uri: this.#c.redirectUri,
      scope: this.#c.scope ?? "openid",
      state: pending.state,
      code_challenge: await sha256(pending.verifier),
      code_challenge_method: "S256",
      dpop_jkt: key.thumbprint,
    };
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return url.href;
  }

  /** Takes the answer of the authorization server, the URL that it came back to. */
  async callback(answer: string): Promise<void> {
    const record = await this.#record();
    const query = new URL(answer).searchParams;
    if (record?.pending === undefined || query.get("state") !== record.pending.state) {
      throw new SessionError("authorization", "this answer belongs to no login that was begun here: begin again");
    }
    const code = query.get("code");
    if (code === null) {
      throw new SessionError("authorization", "the login was refused: " + (query.get("error") ?? "no reason was given"));
    }
    await this.#grant(record, {
      grant_type: "authorization_code",
      code,
      redirect_uri: this.#c.redirectUri,
      code_verifier: record.pending.verifier,
    });
  }

  /** Sends a request with the token and a proof. */
  async fetch(out: Outgoing, signal?: AbortSignal): Promise<Response> {
    if (!this.#c.origins.some((o) => new URL(o).origin === new URL(out.url).origin)) {
      throw new SessionError("origin", "the token does not go to " + new URL(out.url).origin + ": add it to origins if it should");
    }
    let record = await this.#open();
    let response = await this.#send(record, out, record.accessToken, signal);
    if (response.status === 401 && challenge(response).includes('"invalid_token"') && record.refreshToken !== undefined) {
      await response.body?.cancel();
      record = await this.#refresh(record.accessToken);
      response = await this.#send(record, out, record.accessToken, signal);
    }
    return response;
  }

  /** Ends the session here, in other pages, and at the authorization server. */
  async logout(): Promise<void> {
    const record = await this.#record();
    await this.#store.put(undefined);
    this.#channel?.postMessage("logout" satisfies Ending);
    const token = record?.refreshToken ?? record?.accessToken;
    if (record !== undefined && token !== undefined && this.#c.revocationEndpoint !== undefined) {
      await this.#post(record, this.#c.revocationEndpoint, { token });
    }
    this.#end("logout");
  }

  /** Makes every attempt to export the session's key. */
  async prove(): Promise<Attempt[]> {
    return attempts((await this.#open()).key);
  }

  #end(reason: Ending): void {
    this.#nonces.clear();
    this.#had = false;
    this.#ended(reason);
  }

  async #record(): Promise<SessionRecord | undefined> {
    let record: SessionRecord | undefined;
    try {
      record = await this.#store.get();
    } catch {
      record = undefined; // storage that was cleared while in use, or is not to be had
    }
    // Storage may be cleared in part: a record without its key is no session.
    if (record !== undefined && !(record.key?.pair?.privateKey instanceof CryptoKey)) record = undefined;
    if (record?.accessToken !== undefined) this.#had = true;
    return record;
  }

  async #open(): Promise<SessionRecord> {
    const record = await this.#record();
    if (record?.accessToken !== undefined) return record;
    if (this.#had) this.#end("key-lost");
    throw new SessionError("no-session", "there is no session here: log in");
  }

  /**
   * Renews the tokens, once for all pages: who waited for another finds new ones.
   */
  async #refresh(old: string | undefined): Promise<SessionRecord> {
    return navigator.locks.request(this.#name, async () => {
      const record = await this.#open();
      if (record.accessToken !== old) return record;
      if (record.refreshToken === undefined) throw new SessionError("no-session", "the session has ended: log in");
      return this.#grant(record, { grant_type: "refresh_token", refresh_token: record.refreshToken });
    });
  }

  /** Asks the token endpoint, and keeps what it gives. */
  async #grant(record: SessionRecord, form: Record<string, string>): Promise<SessionRecord> {
    const response = await this.#post(record, this.#c.tokenEndpoint, form);
    const answer = (await response.json().catch(() => ({}))) as Record<string, unknown>;
    if (response.status >= 500) throw new SessionError("unreachable", "the authorization server answered " + response.status);
    if (!response.ok) {
      if (answer["error"] === "invalid_grant" && form["grant_type"] === "refresh_token") {
        await this.#store.put(undefined);
        this.#channel?.postMessage("refused" satisfies Ending);
        this.#end("refused");
      }
      throw new SessionError("token", "the authorization server refuses: " + String(answer["error"] ?? response.status));
    }
    const { token_type: type, access_token: access, refresh_token: refresh } = answer;
    if (typeof type !== "string" || type.toLowerCase() !== "dpop" || typeof access !== "string") {
      throw new SessionError("token", "the authorization server gave a token that is bound to no key: it is thrown away");
    }
    const renewed: SessionRecord = {
      key: record.key,
      accessToken: access,
      refreshToken: typeof refresh === "string" ? refresh : record.refreshToken,
    };
    await this.#store.put(renewed);
    this.#had = true;
    return renewed;
  }

  #post(record: SessionRecord, url: string, form: Record<string, string>): Promise<Response> {
    const body = new TextEncoder().encode(new URLSearchParams({ ...form, client_id: this.#c.clientId }).toString()).buffer as ArrayBuffer;
    const headers: [string, string][] = [["Content-Type", "application/x-www-form-urlencoded"]];
    return this.#send(record, { url, method: "POST", headers, body, credentials: "omit" });
  }

  /** Sends a request, and once more if the server asks for a nonce or its time differs. */
  async #send(record: SessionRecord, out: Outgoing, token?: string, signal?: AbortSignal): Promise<Response> {
    const origin = new URL(out.url).origin;
    for (let again = false; ; again = true) {
      const nonce = this.#nonces.get(origin);
      const headers = new Headers(out.headers);
      headers.set("DPoP", await prove(record.key, { method: out.method, url: out.url, token, nonce, offset: this.#offset }));
      if (token !== undefined) headers.set("Authorization", "DPoP " + token);
      const response = await fetch(out.url, {
        method: out.method,
        headers,
        body: out.body ?? null,
        credentials: out.credentials,
        redirect: "error", // a proof is for one URL
        signal: signal ?? null,
      });
      const newer = this.#adopt(origin, response);
      if (again || response.ok || (response.status !== 401 && response.status !== 400)) return response;
      const error = await errorOf(response);
      const retry =
        (error === "use_dpop_nonce" && newer !== undefined && newer !== nonce) || (error === "invalid_dpop_proof" && this.#measure(response));
      if (!retry) return response;
      await response.body?.cancel();
    }
  }

  /** Keeps the nonce of an answer, whatever its status. */
  #adopt(origin: string, response: Response): string | undefined {
    const nonce = response.headers.get("DPoP-Nonce") ?? undefined;
    if (nonce !== undefined) {
      this.#nonces.delete(origin);
      this.#nonces.set(origin, nonce);
      for (const oldest of this.#nonces.keys()) {
        if (this.#nonces.size <= maxOrigins) break;
        this.#nonces.delete(oldest);
      }
    }
    return nonce;
  }

  /** Learns by how much the clocks differ; true if it is news. */
  #measure(response: Response): boolean {
    const date = Date.parse(response.headers.get("Date") ?? "");
    const offset = Math.round((date - Date.now()) / 1000);
    if (Number.isNaN(date) || Math.abs(offset - this.#offset) < 5) return false;
    this.#offset = offset;
    return true;
  }
}

function challenge(response: Response): string {
  return response.headers.get("WWW-Authenticate") ?? "";
}

/** The error of a challenge, or of a token endpoint's answer. */
async function errorOf(response: Response): Promise<string> {
  const told = /\berror="([a-z_]+)"/.exec(challenge(response))?.[1];
  if (told !== undefined) return told;
  const answer = (await response.clone().json().catch(() => ({}))) as Record<string, unknown>;
  return String(answer["error"] ?? "");
}

/** What a page asks of its session. */
export type Ask =
  | { op: "facts" | "logout" | "prove" }
  | { op: "login"; extra: Record<string, string> }
  | { op: "callback"; answer: string }
  | { op: "fetch"; out: Outgoing };

/** Has a session do what is asked. */
export function answer(core: Core, ask: Ask, signal?: AbortSignal): Promise<unknown> {
  switch (ask.op) {
    case "facts":
      return core.facts();
    case "logout":
      return core.logout();
    case "prove":
      return core.prove();
    case "login":
      return core.login(ask.extra);
    case "callback":
      return core.callback(ask.answer);
    case "fetch":
      return core.fetch(ask.out, signal);
  }
}
