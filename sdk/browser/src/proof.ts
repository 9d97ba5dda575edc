// Proofs of possession (RFC 9449) with WebCrypto.

/** The signature algorithms that a session's key may have. */
export type Algorithm = "ES256" | "Ed25519";

/** A session's key pair. The private half cannot be exported. */
export interface KeyPair {
  readonly algorithm: Algorithm;
  readonly pair: CryptoKeyPair;
  /** RFC 7638, SHA-256: what `cnf.jkt` of a token is for this key. */
  readonly thumbprint: string;
  readonly jwk: JsonWebKey;
}

const encoder = new TextEncoder();

const parameters = {
  ES256: { create: { name: "ECDSA", namedCurve: "P-256" }, sign: { name: "ECDSA", hash: "SHA-256" }, members: ["crv", "kty", "x", "y"] },
  Ed25519: { create: { name: "Ed25519" }, sign: { name: "Ed25519" }, members: ["crv", "kty", "x"] },
} as const;

/** The name that the most servers know an algorithm by. */
const header = { ES256: "ES256", Ed25519: "EdDSA" } as const;

/** Encodes bytes in base64url without padding. */
export function base64url(bytes: ArrayBuffer | Uint8Array): string {
  let text = "";
  for (const b of new Uint8Array(bytes)) text += String.fromCharCode(b);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** A random text of 128 bits. */
export function random(): string {
  return base64url(crypto.getRandomValues(new Uint8Array(16)));
}

/** The SHA-256 of a text, in base64url. */
export async function sha256(text: string): Promise<string> {
  return base64url(await crypto.subtle.digest("SHA-256", encoder.encode(text)));
}

/** Creates a key pair. An extractable one is for the control of an attempt alone. */
export async function createKey(algorithm: Algorithm, extractable = false): Promise<KeyPair> {
  const pair = (await crypto.subtle.generateKey(parameters[algorithm].create, extractable, ["sign", "verify"])) as CryptoKeyPair;
  const all = (await crypto.subtle.exportKey("jwk", pair.publicKey)) as Record<string, unknown>;
  // The members that RFC 7638 hashes, in their order, and no others.
  const jwk = Object.fromEntries(parameters[algorithm].members.map((name) => [name, all[name]])) as JsonWebKey;
  return { algorithm, pair, jwk, thumbprint: await sha256(JSON.stringify(jwk)) };
}

/** What one proof is for. */
export interface Claims {
  method: string;
  url: string;
  /** The access token that goes with it. */
  token?: string | undefined;
  nonce?: string | undefined;
  /** Seconds by which the server's clock is ahead of this one. */
  offset: number;
}

/** Makes a proof for one request. */
export async function prove(key: KeyPair, c: Claims): Promise<string> {
  const url = new URL(c.url);
  const part = (value: object) => base64url(encoder.encode(JSON.stringify(value)));
  const input =
    part({ typ: "dpop+jwt", alg: header[key.algorithm], jwk: key.jwk }) +
    "." +
    part({
      jti: random(),
      htm: c.method,
      htu: url.origin + url.pathname,
      iat: Math.floor(Date.now() / 1000 + c.offset),
      ...(c.token === undefined ? {} : { ath: await sha256(c.token) }),
      ...(c.nonce === undefined ? {} : { nonce: c.nonce }),
    });
  const signature = await crypto.subtle.sign(parameters[key.algorithm].sign, key.pair.privateKey, encoder.encode(input));
  return input + "." + base64url(signature);
}
