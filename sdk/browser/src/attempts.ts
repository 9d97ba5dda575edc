// Every way in which a script could try to carry a key away.

import { createKey, type KeyPair } from "./proof.js";

/** One attempt, and what the same gave on an extractable key. */
export interface Attempt {
  name: string;
  verdict: "held" | "leaked" | "broken";
  /** What came back. */
  result: string;
  /** What came back for the control, which has to leak. */
  control: string;
}

type Try = (key: CryptoKey) => Promise<unknown>;

// Of a private key there is no raw form.
const formats = ["jwk", "pkcs8"] as const;
const exporting = (format: KeyFormat): Try => (key) => crypto.subtle.exportKey(format as "jwk", key);

/** Wraps with a key whose other half is here too. */
const wrapping = (format: KeyFormat): Try => async (key) => {
  const wrapper = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, true, ["wrapKey", "unwrapKey"]);
  return crypto.subtle.wrapKey(format, key, wrapper, { name: "AES-GCM", iv: new Uint8Array(12) });
};

/** Clones through a channel, as to another page or worker. */
const cloning: Try = (key) =>
  new Promise((resolve, reject) => {
    const { port1, port2 } = new MessageChannel();
    port2.onmessage = (e: MessageEvent<CryptoKey>) => {
      port1.close();
      exporting("jwk")(e.data).then(resolve, reject);
    };
    port1.postMessage(key);
  });

/** Stores it, and reads it back. */
const storing: Try = async (key) => {
  const name = "claviger-attempt-" + crypto.randomUUID();
  const wait = <T>(r: IDBRequest<T>) =>
    new Promise<T>((resolve, reject) => {
      r.onsuccess = () => resolve(r.result);
      r.onerror = () => reject(r.error);
    });
  const opening = indexedDB.open(name);
  opening.onupgradeneeded = () => opening.result.createObjectStore("keys");
  const db = await wait(opening);
  try {
    await wait(db.transaction("keys", "readwrite").objectStore("keys").put(key, 1));
    return await exporting("jwk")(await wait(db.transaction("keys").objectStore("keys").get(1)));
  } finally {
    db.close();
    indexedDB.deleteDatabase(name);
  }
};

/** Says that the key is extractable, on the object or on its class. */
const redefining = (whole: boolean): Try => async (key) => {
  const target = whole ? CryptoKey.prototype : key;
  const before = Object.getOwnPropertyDescriptor(target, "extractable");
  Object.defineProperty(target, "extractable", { value: true, configurable: true });
  try {
    return await exporting("jwk")(key);
  } finally {
    if (before === undefined) delete (target as { extractable?: boolean }).extractable;
    else Object.defineProperty(target, "extractable", before);
  }
};

/** Hands a worker of its own the key. */
const elsewhere: Try = async (key) => {
  const url = URL.createObjectURL(
    new Blob(["onmessage=e=>crypto.subtle.exportKey('jwk',e.data).then(k=>postMessage({k}),x=>postMessage({x:x.name}))"], { type: "text/javascript" }),
  );
  const worker = new Worker(url);
  try {
    return await new Promise((resolve, reject) => {
      worker.onmessage = (e: MessageEvent<{ k?: unknown; x?: string }>) => (e.data.k === undefined ? reject(new Error(e.data.x)) : resolve(e.data.k));
      worker.onerror = () => reject(new Error("no worker can be started here"));
      worker.postMessage(key);
    });
  } finally {
    worker.terminate();
    URL.revokeObjectURL(url);
  }
};

/** Writes out what can be seen of the object. The control is what a script that holds key bytes would do. */
const tries: [string, Try][] = [
  ...formats.map((f): [string, Try] => ["export as " + f, exporting(f)]),
  ...formats.map((f): [string, Try] => ["wrap as " + f, wrapping(f)]),
  ["clone through a channel, then export", cloning],
  ["structuredClone, then export", async (key) => exporting("jwk")(structuredClone(key))],
  ["store and read back, then export", storing],
  ["redefine extractable of the key, then export", redefining(false)],
  ["redefine extractable of the class, then export", redefining(true)],
  ["export in a worker", elsewhere],
];

async function outcome(attempt: Try, key: CryptoKey): Promise<[leaked: boolean, said: string]> {
  try {
    await attempt(key);
    return [true, "the private key came out"];
  } catch (e) {
    return [false, e instanceof Error ? e.name + ": " + e.message : String(e)];
  }
}

/** Makes the attempts on a key, each with an extractable key as its control. */
export async function attempts(key: KeyPair): Promise<Attempt[]> {
  const weak = await createKey(key.algorithm, true);
  const out: Attempt[] = [];
  for (const [name, attempt] of tries) {
    const [leaked, result] = await outcome(attempt, key.pair.privateKey);
    const [control, said] = await outcome(attempt, weak.pair.privateKey);
    out.push({ name, verdict: leaked ? "leaked" : control ? "held" : "broken", result, control: said });
  }
  return out;
}
