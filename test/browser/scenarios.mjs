// What a person's browser does with the library. Arguments: the origin of the
// pages, the issuer, the API and a directory for a profile.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const [origin, issuer, api, profile] = process.argv.slice(2);
const launch = {
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
};
const configuration = {
  authorizationEndpoint: issuer + "/auth",
  tokenEndpoint: issuer + "/token",
  revocationEndpoint: issuer + "/token/revocation",
  clientId: "page",
  redirectUri: origin + "/back",
  scope: "openid offline_access orders",
  origins: [api],
};

let browser;
before(async () => {
  browser = await chromium.launch(launch);
});
after(() => browser.close());

/** Opens the application in a page: `session` there is a session. */
async function open(page, options = {}) {
  await page.goto(origin + "/");
  await load(page, options);
}

async function load(page, options = {}) {
  await page.evaluate(
    async ([source, options]) => {
      const { Session } = await import(source);
      window.session = new Session(options);
      window.endings = [];
      window.session.addEventListener("ended", (e) => window.endings.push(e.detail));
    },
    [origin + "/dist/index.js", { ...configuration, ...options }],
  );
}

/** Logs a person in at the authorization server. */
async function login(page, options = {}) {
  await open(page, options);
  await page.goto(await page.evaluate(() => session.login()));
  await page.fill("input[name=login]", "ada");
  await page.fill("input[name=password]", "any");
  await Promise.all([page.waitForURL(origin + "/back?*"), page.click("button[type=submit]")]);
  await load(page, options);
  await page.evaluate(() => session.callback(location.href));
}

/** Logs in where the key is in memory: the page stays, and another logs in. */
async function loginInPlace(page, context, options) {
  await open(page, options);
  const other = await context.newPage();
  await other.goto(await page.evaluate(() => session.login()));
  await other.fill("input[name=login]", "ada");
  await other.fill("input[name=password]", "any");
  await Promise.all([other.waitForURL(origin + "/back?*"), other.click("button[type=submit]")]);
  await page.evaluate((url) => session.callback(url), other.url());
  await other.close();
}

const order = (page, path = "/orders") =>
  page.evaluate(async (url) => {
    const r = await session.fetch(url);
    return { status: r.status, body: r.status === 200 ? await r.json() : await r.text() };
  }, api + path);

const count = async () => Number(await (await fetch(api + "/count")).text());
const fresh = async () => {
  const context = await browser.newContext();
  return [await context.newPage(), context];
};
const failure = (page, f, ...args) =>
  page.evaluate(
    async ([source, args]) => {
      try {
        await new Function("return (" + source + ")")()(...args);
        return "nothing";
      } catch (e) {
        return e.name + " " + (e.code ?? "") + ": " + e.message;
      }
    },
    [f.toString(), args],
  );

for (const options of [{}, { worker: false }, { algorithm: "Ed25519" }]) {
  test("login, requests, reload, refresh: " + JSON.stringify(options), async () => {
    const [page, context] = await fresh();
    await login(page, options);
    assert.deepEqual((await order(page)).body, { sub: "ada", method: "GET", type: "", body: "" });
    const before = await count();
    assert.equal((await order(page)).status, 200);
    assert.equal(await count(), before + 1, "the nonce is known: one request each");
    const facts = await page.evaluate(() => session.facts());
    assert.equal(facts.place, options.worker === false ? "page" : "worker");
    assert.equal(facts.level, "script-resistant");
    assert.equal(facts.algorithm, options.algorithm ?? "ES256");

    await page.reload();
    await load(page, options);
    assert.equal((await order(page)).status, 200);
    assert.equal((await page.evaluate(() => session.facts())).thumbprint, facts.thumbprint, "the key lasts");

    // The token ends early: the next request renews it, by the same key.
    await page.evaluate(async (name) => {
      const db = await new Promise((resolve) => (indexedDB.open("claviger").onsuccess = (e) => resolve(e.target.result)));
      const store = db.transaction("sessions", "readwrite").objectStore("sessions");
      await new Promise((resolve) => {
        store.get(name).onsuccess = (e) => {
          store.put({ ...e.target.result, accessToken: "ended" }, name).onsuccess = resolve;
        };
      });
      db.close();
    }, "claviger:default");
    assert.equal((await order(page)).status, 200);
    assert.equal((await page.evaluate(() => session.facts())).thumbprint, facts.thumbprint);
    await context.close();
  });
}

test("bodies, methods, abort, other origins", async () => {
  const [page, context] = await fresh();
  await login(page);
  const post = (body) =>
    page.evaluate(
      async ([url, body]) => {
        const form = new FormData();
        form.set("a", "b");
        const given = { text: "an order", form, params: new URLSearchParams({ a: "b" }), bytes: new Uint8Array([65, 66]) }[body];
        return (await session.fetch(url, { method: "PUT", body: given })).json();
      },
      [api + "/orders?page=2#top", body],
    );
  assert.equal((await post("text")).body, "an order");
  assert.equal((await post("bytes")).body, "AB");
  assert.match((await post("params")).type, /urlencoded/);
  assert.match((await post("form")).type, /boundary/);
  const before = await count();
  assert.match(await failure(page, (url) => session.fetch(url), origin + "/"), /SessionError origin/);
  assert.match(await failure(page, (url) => session.fetch(url, { signal: AbortSignal.abort() }), api + "/orders"), /AbortError/);
  assert.equal(await count(), before, "nothing was sent");
  await context.close();
});

for (const worker of [true, false]) {
  test("prove: every attempt is held, and its control leaks; worker: " + worker, async () => {
    const [page, context] = await fresh();
    await login(page, { worker });
    const attempts = await page.evaluate(() => session.prove());
    assert.equal(attempts.length, 10);
    for (const a of attempts) assert.equal(a.verdict, "held", JSON.stringify(a));
    assert.equal((await order(page)).status, 200, "the attempts leave the key as it was");
    await context.close();
  });
}

test("a browser that lets keys out is found, and one whose control holds is broken", async () => {
  const [page, context] = await fresh();
  await login(page, { worker: false });
  const verdicts = (override) =>
    page.evaluate(async (source) => {
      const real = crypto.subtle.exportKey;
      crypto.subtle.exportKey = new Function("return " + source)().bind(crypto.subtle, real.bind(crypto.subtle));
      try {
        return (await session.prove()).filter((a) => a.name.startsWith("export as")).map((a) => a.verdict);
      } finally {
        crypto.subtle.exportKey = real;
      }
    }, override);
  assert.deepEqual(await verdicts("(real, format, key) => key.type === 'private' ? Promise.resolve({}) : real(format, key)"), ["leaked", "leaked"]);
  assert.deepEqual(await verdicts("(real, format, key) => key.type === 'private' ? Promise.reject(new Error('no')) : real(format, key)"), ["broken", "broken"]);
  await context.close();
});

test("in memory: a reload ends the session, and scripts of the page find nothing", async () => {
  const [page, context] = await fresh();
  await loginInPlace(page, context, { store: "memory" });
  assert.equal((await order(page)).status, 200);
  const databases = await page.evaluate(async () => (await indexedDB.databases()).map((d) => d.name));
  assert.deepEqual(databases, []);
  await page.reload();
  await load(page, { store: "memory" });
  assert.match(await failure(page, (url) => session.fetch(url), api + "/orders"), /SessionError no-session/);
  await context.close();
});

test("two tabs: one refresh for both, and logout in one ends the other", async () => {
  const [one, context] = await fresh();
  await login(one);
  const two = await context.newPage();
  await open(two);
  assert.equal((await order(two)).status, 200);
  // Both find the token ended at the same moment. The refresh token rotates:
  // two renewals with one would end the session.
  await one.evaluate(async (name) => {
    const db = await new Promise((resolve) => (indexedDB.open("claviger").onsuccess = (e) => resolve(e.target.result)));
    const store = db.transaction("sessions", "readwrite").objectStore("sessions");
    await new Promise((resolve) => {
      store.get(name).onsuccess = (e) => (store.put({ ...e.target.result, accessToken: "ended" }, name).onsuccess = resolve);
    });
    db.close();
  }, "claviger:default");
  const both = await Promise.all([order(one), order(two), order(one), order(two)]);
  assert.deepEqual(both.map((r) => r.status), [200, 200, 200, 200]);

  const stolen = await one.evaluate(async () => {
    const db = await new Promise((resolve) => (indexedDB.open("claviger").onsuccess = (e) => resolve(e.target.result)));
    const record = await new Promise((resolve) => (db.transaction("sessions").objectStore("sessions").get("claviger:default").onsuccess = (e) => resolve(e.target.result)));
    db.close();
    return record.accessToken;
  });
  for (const scheme of ["DPoP", "Bearer"]) {
    const r = await fetch(api + "/orders", { headers: { Authorization: scheme + " " + stolen } });
    assert.equal(r.status, 401, "a token without its key is worth nothing: " + scheme);
  }
  await one.evaluate(() => session.logout());
  await two.waitForFunction(() => endings.length > 0);
  assert.deepEqual(await two.evaluate(() => endings), ["logout"]);
  for (const page of [one, two]) assert.match(await failure(page, (url) => session.fetch(url), api + "/orders"), /SessionError no-session/);
  await context.close();
});

test("a key that was lost is a session that ended", async () => {
  const [page, context] = await fresh();
  await login(page);
  assert.equal((await order(page)).status, 200);
  await page.evaluate(() => new Promise((resolve) => (indexedDB.deleteDatabase("claviger").onsuccess = resolve)));
  assert.match(await failure(page, (url) => session.fetch(url), api + "/orders"), /SessionError no-session: there is no session here/);
  assert.deepEqual(await page.evaluate(() => endings), ["key-lost"]);
  assert.equal((await page.evaluate(() => session.facts())).state, "none");
  await context.close();
});

test("a refresh token that was revoked is a session that ended", async () => {
  const [page, context] = await fresh();
  await login(page);
  await page.evaluate(async (name) => {
    const db = await new Promise((resolve) => (indexedDB.open("claviger").onsuccess = (e) => resolve(e.target.result)));
    const store = db.transaction("sessions", "readwrite").objectStore("sessions");
    await new Promise((resolve) => {
      store.get(name).onsuccess = (e) => (store.put({ ...e.target.result, accessToken: "ended", refreshToken: "revoked" }, name).onsuccess = resolve);
    });
    db.close();
  }, "claviger:default");
  assert.match(await failure(page, (url) => session.fetch(url), api + "/orders"), /SessionError token/);
  assert.deepEqual(await page.evaluate(() => endings), ["refused"]);
  await context.close();
});

test("a clock that is an hour off", async () => {
  const context = await browser.newContext();
  await context.addInitScript(() => {
    const now = Date.now.bind(Date);
    Date.now = () => now() - 3600_000;
  });
  const page = await context.newPage();
  await login(page, { worker: false });
  assert.equal((await order(page, "/strict/orders")).status, 200);
  const { clockOffset } = await page.evaluate(() => session.facts());
  assert.ok(Math.abs(clockOffset - 3600) < 10, "offset " + clockOffset);
  await context.close();
});

test("an answer to a login that nobody began", async () => {
  const [page, context] = await fresh();
  await open(page);
  assert.match(await failure(page, (url) => session.callback(url), origin + "/back?code=stolen&state=x"), /SessionError authorization/);
  await context.close();
});

test("the browser is closed and started again", async () => {
  const start = () => chromium.launchPersistentContext(profile, launch);
  let context = await start();
  await login(await context.newPage());
  await context.close();
  context = await start();
  const page = await context.newPage();
  await open(page);
  assert.equal((await order(page)).status, 200);
  await context.close();
});

// What a script does that somebody injected into the page: it has no key, and
// the page's session to ask.
const events = async (key) => (await (await fetch(api + "/guarded/events")).json() ?? []).filter((e) => e.endsWith(" " + key)).map((e) => e.split(" ")[0]);
const thumbprint = (page) => page.evaluate(async () => (await session.facts()).thumbprint);
const bulk = (page, path, n) =>
  page.evaluate(
    async ([url, n]) => {
      let good = 0;
      for (let i = 0; i < n; i++) good += (await session.fetch(url)).status === 200;
      return good;
    },
    [api + path, n],
  );

/** Has the page sign requests that are kept and not sent. */
const mint = (page, path, n) =>
  page.evaluate(
    async ([url, n]) => {
      const real = window.fetch;
      const kept = [];
      window.fetch = async (u, init) => {
        const headers = new Headers(init?.headers);
        if (!headers.has("DPoP")) return real(u, init);
        kept.push({ DPoP: headers.get("DPoP"), Authorization: headers.get("Authorization") });
        return new Response("{}");
      };
      try {
        for (let i = 0; i < n; i++) await session.fetch(url);
      } finally {
        window.fetch = real;
      }
      return kept;
    },
    [api + path, n],
  );
const replay = async (headers, path) => {
  const r = await fetch(api + path, { headers });
  return r.status + " " + (/error="([a-z_]+)"/.exec(r.headers.get("WWW-Authenticate") ?? "")?.[1] ?? "");
};
const nonce = async () => (await fetch(api + "/guarded/nonce")).text();

test("injected: proofs minted ahead of time are useless, and are seen", async () => {
  const [inWorker, one] = await fresh();
  await login(inWorker);
  assert.equal((await order(inWorker, "/guarded/orders")).status, 200);
  assert.deepEqual(await mint(inWorker, "/guarded/orders", 3), [], "a worker's proofs do not pass the page");
  await one.close();

  const [page, context] = await fresh();
  await login(page, { worker: false });
  assert.equal((await order(page, "/guarded/orders")).status, 200);
  const key = await thumbprint(page);
  const kept = await mint(page, "/guarded/orders", 62);
  assert.equal(kept.length, 62);
  assert.equal(await replay(kept[0], "/guarded/orders"), "200 ", "the control: one that is sent at once passes");
  assert.equal(await replay(kept[0], "/guarded/orders"), "401 invalid_dpop_proof", "once");
  for (let spans = 0, last = await nonce(); spans < 2; ) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const now = await nonce();
    if (now !== last) [spans, last] = [spans + 1, now];
  }
  assert.deepEqual(await events(key), []);
  for (const headers of kept.slice(1)) assert.equal(await replay(headers, "/guarded/orders"), "401 use_dpop_nonce");
  assert.equal((await events(key))[0], "stale-nonce"); // so many of them may be a volume, too
  assert.equal((await order(page, "/guarded/orders")).status, 401, "the session is suspended");
  await context.close();
});

test("injected: in bulk, through the worker", async () => {
  const [page, context] = await fresh();
  await login(page);
  const key = await thumbprint(page);
  assert.equal(await bulk(page, "/orders", 120), 120, "the control: without the rules all pass");
  const good = await bulk(page, "/guarded/orders", 120);
  assert.ok(good <= 50, good + " passed");
  assert.ok((await events(key)).includes("volume"), String(await events(key)));
  assert.notEqual((await order(page, "/guarded/orders")).status, 200, "the session is suspended");
  await context.close();
});

test("injected: after logout", async () => {
  const [page, context] = await fresh();
  await login(page, { worker: false });
  assert.equal((await order(page, "/guarded/orders")).status, 200);
  const key = await thumbprint(page);
  const [before, after] = await mint(page, "/guarded/orders", 2);
  assert.equal(await replay(before, "/guarded/orders"), "200 ", "the control: before the logout it passes");
  await page.evaluate(() => session.logout());
  await fetch(api + "/guarded/end?key=" + key);
  assert.equal(await replay(after, "/guarded/orders"), "401 invalid_token");
  assert.deepEqual(await events(key), ["use-after-end"]);
  assert.match(await failure(page, (url) => session.fetch(url), api + "/guarded/orders"), /SessionError no-session/);
  await context.close();
});
