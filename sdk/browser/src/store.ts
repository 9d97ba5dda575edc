// Where a session's record is kept between pages.

import type { KeyPair } from "./proof.js";

/** What a session is made of. */
export interface SessionRecord {
  key: KeyPair;
  /** Until when an authorization may come back, and what it has to match. */
  pending?: { state: string; verifier: string } | undefined;
  accessToken?: string | undefined;
  refreshToken?: string | undefined;
}

/** Keeps one record. */
export interface Store {
  get(): Promise<SessionRecord | undefined>;
  /** Puts or, for undefined, removes the record. */
  put(record: SessionRecord | undefined): Promise<void>;
}

/** A store that ends with its page or worker. */
export function memoryStore(): Store {
  let kept: SessionRecord | undefined;
  return {
    get: async () => kept,
    put: async (record) => {
      kept = record;
    },
  };
}

const table = "sessions";

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * A store in IndexedDB, which every page of the origin shares. It is opened for
 * each use: a connection that stays open would keep the browser from clearing
 * the site's data.
 */
export function databaseStore(name: string): Store {
  async function use<T>(mode: IDBTransactionMode, act: (s: IDBObjectStore) => IDBRequest): Promise<T> {
    const opening = indexedDB.open("claviger", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(table);
    const db = await done(opening);
    try {
      const transaction = db.transaction(table, mode, { durability: "strict" });
      const finished = new Promise<void>((resolve, reject) => {
        transaction.oncomplete = () => resolve();
        transaction.onabort = () => reject(transaction.error);
      });
      const result = (await done(act(transaction.objectStore(table)))) as T;
      await finished;
      return result;
    } finally {
      db.close();
    }
  }
  return {
    get: () => use<SessionRecord | undefined>("readonly", (s) => s.get(name)),
    put: async (record) => {
      await use<void>("readwrite", (s) => (record === undefined ? s.delete(name) : s.put(record, name)));
    },
  };
}
