// The authorization server, used by clients that nobody here wrote:
// openid-client, oauth4webapi, dpop and jose.
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as client from "openid-client";
import * as oauth from "oauth4webapi";
import * as jose from "jose";
import * as dpop from "dpop";

const site = JSON.parse(readFileSync(process.argv[2], "utf8"));
const api = "https://api.example/";
const keys = jose.createRemoteJWKSet(new URL(site.issuer + "/oauth/jwks"));

// verified reads an access token as a resource server does (RFC 9068).
async function verified(token) {
  const { payload, protectedHeader } = await jose.jwtVerify(token, keys, { issuer: site.issuer, audience: api, typ: "at+jwt" });
  assert.ok(payload.cnf?.jkt, "the token is bound to a key");
  assert.ok(protectedHeader.kid);
  return payload;
}

async function thumbprint(pair) {
  return jose.calculateJwkThumbprint(await jose.exportJWK(pair.publicKey));
}

async function serviceKey() {
  return { key: await crypto.subtle.importKey("jwk", site.service.jwk, { name: "ECDSA", namedCurve: "P-256" }, false, ["sign"]), kid: "k" };
}

// visit follows redirects as a browser does, with a cookie jar for each origin,
// until it comes to the client's page; it fills in the provider's login form.
class Browser {
  #jars = new Map();

  async fetch(to, init = {}) {
    const origin = new URL(to).origin;
    const jar = this.#jars.get(origin) ?? new Map();
    this.#jars.set(origin, jar);
    const headers = new Headers(init.headers);
    headers.set("cookie", [...jar].map(([n, v]) => `${n}=${v}`).join("; "));
    const response = await fetch(to, { ...init, headers, redirect: "manual" });
    for (const line of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (value === "" || /expires=Thu, 01 Jan 1970/i.test(line)) jar.delete(name);
      else jar.set(name, value);
    }
    return response;
  }

  async visit(to, person) {
    for (let i = 0; i < 20; i++) {
      if (String(to).startsWith(site.page.redirect)) return new URL(to);
      let response = await this.fetch(to);
      if (response.status === 200) {
        const form = await response.text();
        const action = /<form[^>]*action="([^"]+)"/.exec(form)?.[1];
        assert.ok(action, "a page without a form: " + form.slice(0, 500));
        const body = new URLSearchParams({ prompt: "login", login: person, password: "any" });
        response = await this.fetch(new URL(action, to), { method: "POST", body });
      }
      const next = response.headers.get("location");
      assert.ok(next, `${to} answers ${response.status}: ${await response.clone().text()}`);
      to = new URL(next, to).href;
    }
    assert.fail("redirected too often");
  }

  // logs out at the provider, which tells our server by its back channel
  async logout() {
    const end = site.op + "/session/end";
    const page = await (await this.fetch(end)).text();
    const action = /<form[^>]*action="([^"]+)"/.exec(page)[1];
    const xsrf = /name="xsrf"[^>]*value="([^"]+)"/.exec(page)[1];
    const response = await this.fetch(new URL(action, end), { method: "POST", body: new URLSearchParams({ xsrf, logout: "yes" }) });
    assert.ok(response.status < 400, await response.text());
  }
}

async function pageConfig() {
  return client.discovery(new URL(site.issuer), site.page.id, undefined, client.None(), { algorithm: "oauth2" });
}

async function serviceConfig() {
  return client.discovery(new URL(site.issuer), site.service.id, undefined, client.PrivateKeyJwt(await serviceKey()), { algorithm: "oauth2" });
}

// loggedIn is a page with a session, by PAR, PKCE and DPoP.
async function loggedIn(person, browser = new Browser()) {
  const config = await pageConfig();
  const pair = await client.randomDPoPKeyPair("ES256");
  const handle = client.getDPoPHandle(config, pair);
  const verifier = client.randomPKCECodeVerifier();
  const state = client.randomState();
  const to = await client.buildAuthorizationUrlWithPAR(
    config,
    {
      redirect_uri: site.page.redirect,
      scope: "read",
      resource: api,
      state,
      code_challenge: await client.calculatePKCECodeChallenge(verifier),
      code_challenge_method: "S256",
    },
    { DPoP: handle },
  );
  assert.match(to.href, /request_uri=urn/);
  const back = await browser.visit(to.href, person);
  const tokens = await client.authorizationCodeGrant(config, back, { pkceCodeVerifier: verifier, expectedState: state }, undefined, { DPoP: handle });
  return { config, pair, handle, tokens, browser };
}

test("openid-client: discovery finds what is there", async () => {
  const meta = (await pageConfig()).serverMetadata();
  assert.equal(meta.issuer, site.issuer);
  assert.deepEqual(meta.code_challenge_methods_supported, ["S256"]);
  assert.ok(meta.dpop_signing_alg_values_supported.includes("ES256"));
});

test("openid-client: client_credentials by private_key_jwt, with DPoP and nonces", async () => {
  const config = await serviceConfig();
  for (const alg of ["ES256", "Ed25519", "PS256", "RS256"]) {
    const pair = await client.randomDPoPKeyPair(alg);
    const tokens = await client.clientCredentialsGrant(config, { resource: api, scope: "read" }, { DPoP: client.getDPoPHandle(config, pair) });
    assert.equal(tokens.token_type, "dpop");
    const payload = await verified(tokens.access_token);
    assert.equal(payload.cnf.jkt, await thumbprint(pair));
    assert.equal(payload.client_id, site.service.id);
  }
});

test("openid-client: without DPoP nothing is issued", async () => {
  const config = await serviceConfig();
  await assert.rejects(client.clientCredentialsGrant(config, { resource: api }), (err) => err.error === "invalid_dpop_proof");
});

test("openid-client: code with PAR and PKCE, refresh, revocation", async () => {
  const { config, pair, handle, tokens } = await loggedIn("alice");
  const payload = await verified(tokens.access_token);
  assert.equal(payload.sub, site.op + "|alice");
  assert.equal(payload.cnf.jkt, await thumbprint(pair));
  assert.ok(payload.sid);
  const next = await client.refreshTokenGrant(config, tokens.refresh_token, undefined, { DPoP: handle });
  assert.notEqual(next.refresh_token, tokens.refresh_token);
  assert.equal((await verified(next.access_token)).sid, payload.sid);
  const thief = client.getDPoPHandle(config, await client.randomDPoPKeyPair("ES256"));
  await assert.rejects(client.refreshTokenGrant(config, next.refresh_token, undefined, { DPoP: thief }), (err) => err.error === "invalid_grant");
  await assert.rejects(client.refreshTokenGrant(config, next.refresh_token), (err) => err.error === "invalid_dpop_proof");
  const service = await serviceConfig();
  assert.equal((await client.tokenIntrospection(service, next.access_token)).active, true);
  await client.tokenRevocation(config, next.refresh_token);
  assert.equal((await client.tokenIntrospection(service, next.access_token)).active, false);
  await assert.rejects(client.refreshTokenGrant(config, next.refresh_token, undefined, { DPoP: handle }), (err) => err.error === "invalid_grant");
});

test("openid-client: token exchange, of an ID token's kind and of our own", async () => {
  const config = await serviceConfig();
  const pair = await client.randomDPoPKeyPair("ES256");
  const handle = client.getDPoPHandle(config, pair);
  const exchange = (token, type) =>
    client.genericGrantRequest(config, "urn:ietf:params:oauth:grant-type:token-exchange", { subject_token: token, subject_token_type: type, resource: api }, { DPoP: handle });
  const own = await client.clientCredentialsGrant(config, { resource: api }, { DPoP: handle });
  const again = await exchange(own.access_token, "urn:ietf:params:oauth:token-type:access_token");
  assert.equal((await verified(again.access_token)).cnf.jkt, await thumbprint(pair));
  const outside = await new jose.SignJWT({})
    .setProtectedHeader({ alg: "ES256", kid: "cluster" })
    .setIssuer(site.cluster.issuer)
    .setSubject("system:serviceaccount:shop:orders")
    .setAudience(site.issuer)
    .setExpirationTime("2 minutes")
    .sign(await jose.importJWK(site.cluster.jwk, "ES256"));
  const of = await verified((await exchange(outside, "urn:ietf:params:oauth:token-type:jwt")).access_token);
  assert.equal(of.sub, site.cluster.issuer + "|system:serviceaccount:shop:orders");
  assert.equal(of.act.sub, site.service.id);
});

test("oauth4webapi and dpop: the flow by hand, with the page's own logout", async () => {
  const issuer = new URL(site.issuer);
  const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: "oauth2" }));
  const me = { client_id: site.page.id };
  const pair = await oauth.generateKeyPair("ES256");
  const DPoP = oauth.DPoP(me, pair);
  const verifier = oauth.generateRandomCodeVerifier();
  const params = new URLSearchParams({
    client_id: site.page.id,
    response_type: "code",
    redirect_uri: site.page.redirect,
    resource: api,
    state: "s",
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
    code_challenge_method: "S256",
  });
  const pushing = () => oauth.pushedAuthorizationRequest(as, me, oauth.None(), params, { DPoP }).then((r) => oauth.processPushedAuthorizationResponse(as, me, r));
  const pushed = await pushing().catch((err) => (oauth.isDPoPNonceError(err) ? pushing() : Promise.reject(err)));
  const to = new URL(as.authorization_endpoint);
  to.search = new URLSearchParams({ client_id: site.page.id, request_uri: pushed.request_uri });
  const back = await new Browser().visit(to.href, "bob");
  const answer = oauth.validateAuthResponse(as, me, back, "s"); // checks iss (RFC 9207)
  const tokens = await oauth.processAuthorizationCodeResponse(
    as,
    me,
    await oauth.authorizationCodeGrantRequest(as, me, oauth.None(), answer, site.page.redirect, verifier, { DPoP }),
  );
  assert.equal(tokens.token_type, "dpop");
  const form = new URLSearchParams({ post_logout_redirect_uri: site.page.bye, state: "x" });
  let nonce;
  const logout = async () => {
    const proof = await dpop.generateProof(pair, as.end_session_endpoint, "POST", nonce, tokens.access_token);
    const response = await fetch(as.end_session_endpoint, { method: "POST", body: form, redirect: "manual", headers: { authorization: "DPoP " + tokens.access_token, dpop: proof } });
    nonce = response.headers.get("dpop-nonce") ?? nonce;
    return response;
  };
  let response = await logout();
  assert.equal(response.status, 400);
  assert.equal((await response.json()).error, "use_dpop_nonce");
  response = await logout();
  assert.equal(response.status, 303);
  assert.equal(response.headers.get("location"), site.page.bye + "?state=x");
  await assert.rejects(
    oauth.refreshTokenGrantRequest(as, me, oauth.None(), tokens.refresh_token, { DPoP }).then((r) => oauth.processRefreshTokenResponse(as, me, r)),
    (err) => err.error === "invalid_grant",
  );
});

test("oidc-provider: its back-channel logout ends the sessions here", async () => {
  const browser = new Browser();
  const { config, handle, tokens } = await loggedIn("carol", browser);
  const other = await loggedIn("dave");
  const next = await client.refreshTokenGrant(config, tokens.refresh_token, undefined, { DPoP: handle });
  await browser.logout();
  await assert.rejects(client.refreshTokenGrant(config, next.refresh_token, undefined, { DPoP: handle }), (err) => err.error === "invalid_grant");
  await client.refreshTokenGrant(other.config, other.tokens.refresh_token, undefined, { DPoP: other.handle });
});
