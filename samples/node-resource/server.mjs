// A resource server in Node: it takes access tokens of a Claviger server that
// are bound to a key, with a proof by that key (RFC 9449), and stops taking
// them within a second of the logout.
//
//   node server.mjs --base https://api.example.com --issuer https://login.example.com --claviger /run/claviger/claviger.sock
import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { createServer, request } from "node:http";
import { parseArgs } from "node:util";
import { calculateJwkThumbprint, createRemoteJWKSet, EmbeddedJWK, jwtVerify } from "jose";

const { values: options } = parseArgs({
  options: {
    listen: { type: "string", default: "8080" }, // port of 127.0.0.1: plain HTTP, behind whatever ends TLS
    base: { type: "string", default: "https://api.example.com" }, // where clients reach this server; the audience of their tokens
    issuer: { type: "string", default: "https://login.example.com" },
    keys: { type: "string" }, // the issuer's key set; by default issuer/oauth/jwks
    claviger: { type: "string" }, // the local socket of the Claviger server, for the status of sessions
  },
});
const algorithms = ["ES256", "Ed25519", "EdDSA", "PS256", "RS256"];
const maxAge = 60; // seconds that a proof is good, give or take
const skew = 10;
const keys = createRemoteJWKSet(new URL(options.keys ?? options.issuer + "/oauth/jwks"));

class Refusal extends Error {
  constructor(code, message, status = 401) {
    super(message);
    this.code = code;
    this.status = status;
  }
}
const refuse = (message) => {
  throw new Refusal("invalid_dpop_proof", message);
};

/** What an access token says, if it is the issuer's, for here, in time and bound to a key. */
async function access(token) {
  once(token);
  const { payload } = await jwtVerify(token, keys, {
    issuer: options.issuer,
    audience: options.base,
    typ: "at+jwt",
    algorithms,
    clockTolerance: skew,
    requiredClaims: ["exp", "iat", "jti", "sub", "client_id"],
  });
  if (typeof payload.cnf?.jkt !== "string") throw new Error("the token is bound to no key");
  return payload;
}

/** Makes the checks of RFC 9449, 4.3. The record that a proof was used comes last. */
async function checkProof(field, method, url, token, jkt) {
  if (!field || field.includes(",")) refuse("the request needs one DPoP field"); // Node joins several with a comma
  if (field.length > 12 << 10) refuse("the proof is too long");
  const [header] = once(field);
  if (header.jwk && ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"].some((m) => m in header.jwk)) refuse("the jwk has a private member");
  const { payload } = await jwtVerify(field, EmbeddedJWK, { typ: "dpop+jwt", algorithms, clockTolerance: 1e10 });
  const { jti, htm, htu, iat, ath, nonce } = payload;
  if (typeof jti !== "string" || !jti || jti.length > 256 || typeof iat !== "number") refuse("jti or iat is missing");
  if (htm !== method) refuse("htm is not the method of this request");
  if (typeof htu !== "string" || target(htu) !== target(url)) refuse("htu is not the URL of this request");
  if (ath !== createHash("sha256").update(token).digest("base64url")) refuse("ath is not the hash of the token");
  const thumbprint = await calculateJwkThumbprint(header.jwk);
  if (thumbprint !== jkt) throw new Refusal("invalid_token", "the token is bound to another key");
  if (![0, -1, 1].some((n) => same(nonceOf(n), nonce))) throw new Refusal("use_dpop_nonce", "the proof needs the newest nonce");
  const now = Date.now() / 1000;
  if (iat > now + skew || iat < now - maxAge - skew) refuse("iat is too far from now, which is " + new Date().toISOString());
  burn(thumbprint + " " + jti, iat + maxAge + skew);
}

/** Reads header and claims of a JWT. A member that comes twice is refused: two readers must not see two proofs. */
function once(jwt) {
  const parts = jwt.split(".");
  if (parts.length !== 3) refuse("not a JWT in compact form");
  return parts.slice(0, 2).map((part) => {
    const text = Buffer.from(part, "base64url").toString("utf8");
    const value = JSON.parse(text);
    const open = []; // the members of each object or list that is open
    for (const [, string, colon, mark] of text.matchAll(/("(?:[^"\\]|\\.)*")\s*(:?)|([{}[\]])/g)) {
      if (mark === "{" || mark === "[") open.push(new Set());
      else if (mark) open.pop();
      else if (colon) {
        const name = JSON.parse(string);
        if (open.at(-1).has(name)) refuse("a member comes twice");
        open.at(-1).add(name);
      }
    }
    return value;
  });
}

/** The form in which URLs are compared (RFC 3986, 6.2.2 and 6.2.3), without query and fragment. */
function target(text) {
  const u = new URL(text);
  if (u.username || u.password || !/^https?:$/.test(u.protocol)) refuse("htu is no URL of this server");
  const path = u.pathname.replace(/%[0-9a-f]{2}/gi, (e) => {
    const c = String.fromCharCode(parseInt(e.slice(1), 16));
    return /[\w.~-]/.test(c) ? c : e.toUpperCase();
  });
  return u.origin + path;
}

// Nonces are made of the minute. Several servers need a secret that they share.
const secret = randomBytes(32);
const nonceOf = (minutes) => createHmac("sha256", secret).update(String(Math.floor(Date.now() / 60_000) + minutes)).digest("base64url").slice(0, 22);
const same = (a, b) => typeof b === "string" && a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b));

// The proofs that were used, by when they are too old. Several servers need one record, such as Redis.
const used = new Map();
function burn(id, ends) {
  const now = Date.now() / 1000;
  for (const [old, end] of used) {
    if (end >= now) break; // they are about in the order of their ends
    used.delete(old);
  }
  const hash = createHash("sha256").update(id).digest("base64url");
  if (used.has(hash)) refuse("this proof was used before");
  if (used.size >= 1e6) throw new Refusal("temporarily_unavailable", "too many requests", 503);
  used.set(hash, ends);
}

// Whether sessions live, as the server said within the last second.
const known = new Map();
async function status({ jti, sid = "", client_id }) {
  const id = jti + " " + sid;
  const asked = Date.now();
  let answer = known.get(id);
  if (!answer || asked >= answer.till) {
    const [live] = await ask([{ jti, sid, client_id }]).catch(() => {
      throw new Refusal("temporarily_unavailable", "whether the session lives cannot be known now", 503);
    });
    answer = { live, till: live ? asked + 1000 : Infinity };
    if (known.size > 1e5) known.clear();
    known.set(id, answer);
  }
  if (!answer.live) throw new Refusal("invalid_token", "the session of the token has ended");
}

function ask(tokens) {
  return new Promise((resolve, reject) => {
    const r = request({ socketPath: options.claviger, path: "/oauth/status", method: "POST", timeout: 2000, headers: { "Content-Type": "application/json" } }, (answer) => {
      let body = "";
      answer.on("data", (part) => (body += part)).on("error", reject).on("end", () => {
        try {
          const { live } = JSON.parse(body);
          if (answer.statusCode !== 200 || live.length !== tokens.length) throw new Error("status " + answer.statusCode);
          resolve(live.map((l) => l === true));
        } catch (err) {
          reject(err);
        }
      });
    });
    r.on("error", reject).on("timeout", () => r.destroy(new Error("timeout"))).end(JSON.stringify({ tokens }));
  });
}

/** Who calls. Everything that goes wrong is a refusal. */
async function guard(req) {
  const sent = req.headersDistinct.authorization ?? [];
  if (sent.length > 1) throw new Refusal("invalid_request", "there is more than one Authorization field", 400);
  const [, scheme, token] = /^(\S+) +([\w.~+/=-]+)$/.exec(sent[0] ?? "") ?? [];
  if (scheme?.toLowerCase() !== "dpop") throw new Refusal("invalid_token", "send a token with the scheme DPoP, and a proof");
  let claims;
  try {
    claims = await access(token);
  } catch (err) {
    if (["ERR_JWKS_TIMEOUT", "ERR_JOSE_GENERIC"].includes(err.code) || err instanceof TypeError) {
      throw new Refusal("temporarily_unavailable", "the issuer's keys cannot be had now", 503);
    }
    throw new Refusal("invalid_token", "the token is not good here");
  }
  try {
    await checkProof((req.headersDistinct.dpop ?? []).join(","), req.method, options.base + req.url, token, claims.cnf.jkt);
  } catch (err) {
    throw err instanceof Refusal ? err : new Refusal("invalid_dpop_proof", "the proof is not good");
  }
  await status(claims);
  return claims;
}

const server = createServer({ maxHeaderSize: 32 << 10 }, async (req, res) => {
  try {
    const claims = await guard(req);
    res.writeHead(200, { "Content-Type": "application/json", "DPoP-Nonce": nonceOf(0), "Cache-Control": "no-store" });
    res.end(JSON.stringify({ sub: claims.sub, method: req.method }) + "\n");
  } catch (err) {
    const { code, status } = err instanceof Refusal ? err : new Refusal("temporarily_unavailable", "", 503);
    const head = { "WWW-Authenticate": `DPoP algs="${algorithms.join(" ")}", error="${code}"`, "Cache-Control": "no-store" };
    if (code === "use_dpop_nonce") head["DPoP-Nonce"] = nonceOf(0);
    res.writeHead(status, head).end(code + ": " + err.message + "\n");
  }
});
server.listen(Number(options.listen), "127.0.0.1", () => console.log("listening on 127.0.0.1:" + server.address().port));
