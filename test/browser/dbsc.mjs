// A real browser with a cookie that is bound to its device. Arguments: the
// origin, the hash of the server's key and a directory for a profile. The
// browser keeps its session keys in software, because this machine has no TPM
// that it would use: what is shown is the protocol, not where the key is.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { request } from "node:https";
import { chromium } from "playwright-core";

const [origin, spki, profile] = process.argv.slice(2);
const launch = {
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync",
    // A browser does not bind sessions of a server whose certificate it does not trust.
    "--ignore-certificate-errors-spki-list=" + spki,
    "--enable-features=DeviceBoundSessions,EnableBoundSessionCredentialsSoftwareKeysForManualTesting"],
};
let context;
after(() => context?.close());

/** A browser with the profile, as it was left. */
async function start() {
  await context?.close();
  context = await chromium.launchPersistentContext(profile, launch);
  const page = await context.newPage();
  await page.goto(origin + "/");
  return page;
}

const post = (page, path) => page.evaluate(async (path) => (await fetch(path, { method: "POST" })).status, path);
const account = (page) =>
  page.evaluate(async () => {
    const r = await fetch("/account");
    return r.status === 200 ? await r.json() : r.status;
  });
const bound = { session: true, bound: true };

/** Asks the server past the browser, which knows nothing of it. */
function ask(method, path, cookies = []) {
  const field = cookies.map((c) => `${c.name}=${c.value}`).join("; ");
  return new Promise((resolve, reject) => {
    request(origin + path, { method, headers: { Cookie: field }, rejectUnauthorized: false }, (r) => {
      let body = "";
      r.on("data", (part) => (body += part)).on("end", () => resolve({ status: r.statusCode, body }));
    }).on("error", reject).end();
  });
}

/** What a thief gets with cookies of the browser, elsewhere. */
const elsewhere = async (cookies) => (await ask("GET", "/account", cookies)).status;

/** What the browser has sent so far. */
const came = async () => JSON.parse((await ask("GET", "/test/came")).body);

/** Waits until what the browser sent has this, and returns what it sent since. */
async function wait(what, before) {
  for (;;) {
    const now = (await came()).slice(before.length);
    if (now.includes(what)) return now;
    await new Promise((r) => setTimeout(r, 20));
  }
}

/** Logs in, and waits until the browser has bound the session. */
async function login(page) {
  const before = await came();
  assert.equal(await post(page, "/login"), 200);
  await wait("POST /dbsc/register OK", before);
  while (!(await context.cookies()).some((c) => c.name === "__Host-bound")) {
    await new Promise((r) => setTimeout(r, 20));
  }
}

test("a login is bound, and its cookie alone is worth nothing elsewhere", async () => {
  const page = await start();
  await login(page);
  assert.deepEqual(await account(page), bound);
  const cookies = await context.cookies();
  assert.equal(await elsewhere(cookies.filter((c) => c.name === "__Host-login")), 401);
  assert.equal(await elsewhere(cookies), 200); // both, for as long as the bound one lives
});

test("a cookie that is lost is renewed before the request goes out", async () => {
  const page = await start();
  const before = await came();
  await context.clearCookies({ name: "__Host-bound" });
  assert.deepEqual(await account(page), bound);
  const seen = await wait("GET /account OK", before);
  assert.deepEqual(seen.filter((s) => s.includes("/dbsc/") || s.includes("/account")), ["POST /dbsc/refresh Forbidden", "POST /dbsc/refresh OK", "GET /account OK"]);
});

test("what was stolen ends in minutes, and the browser goes on", async () => {
  const page = await start();
  const cookies = await context.cookies();
  assert.equal(await elsewhere(cookies), 200);
  await ask("POST", "/test/later?by=2h");
  assert.equal(await elsewhere(cookies), 401);
  await context.clearCookies({ name: "__Host-bound" }); // as the browser's own clock would
  assert.deepEqual(await account(page), bound);
});

test("the session outlives the browser", async () => {
  const page = await start();
  assert.deepEqual(await account(page), bound);
  await context.clearCookies({ name: "__Host-bound" });
  assert.deepEqual(await account(page), bound);
});

test("two tabs that need the cookie at once both get it", async () => {
  const page = await start();
  const other = await context.newPage();
  await other.goto(origin + "/");
  await context.clearCookies({ name: "__Host-bound" });
  const all = await Promise.all([page, other, page, other].map(account));
  assert.deepEqual(all, [bound, bound, bound, bound]);
  await other.close();
});

test("while the server cannot tell, the browser keeps its session", async () => {
  const page = await start();
  await context.clearCookies({ name: "__Host-bound" });
  await ask("POST", "/test/dark?on=1");
  assert.equal(await account(page), 503);
  await ask("POST", "/test/dark?on=0");
  const before = await came();
  for (;;) { // it waits a little before it asks again
    const got = await account(page);
    if (got.bound) break;
    assert.equal(got, 401);
    await new Promise((r) => setTimeout(r, 200));
  }
  assert.ok((await came()).slice(before.length).includes("POST /dbsc/refresh OK"));
});

test("a session that the server ended is given up", async () => {
  const page = await start();
  await ask("POST", "/test/end", await context.cookies());
  await context.clearCookies({ name: "__Host-bound" });
  const before = await came();
  assert.deepEqual(await account(page), { session: false, bound: false });
  await account(page);
  const asked = (await came()).slice(before.length).filter((s) => s.includes("/dbsc/"));
  assert.deepEqual(asked, ["POST /dbsc/refresh OK"]); // once, with {"continue":false}
});

for (const [name, path] of [["logout", "/logout"], ["logout with Clear-Site-Data", "/logout?clear"]]) {
  test(name, async () => {
    const page = await start();
    await login(page);
    const cookies = await context.cookies();
    assert.equal(await post(page, path), 200);
    const before = await came();
    assert.equal((await account(page)).session, false);
    await account(page);
    const asked = (await came()).slice(before.length).filter((s) => s.includes("/dbsc/"));
    assert.deepEqual(asked, path.includes("clear") ? [] : ["POST /dbsc/refresh OK"]);
    assert.notDeepEqual(await elsewhere(cookies), 401); // no session, and so not bound: the application answers
  });
}
