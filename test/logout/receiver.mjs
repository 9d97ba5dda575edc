// A receiver that nobody here wrote the verification of: jose, with the keys of
// our own JWKS. It says its port, then one line of JSON for each request, and
// ends with its standard input, whose first line says who it is.
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import { createRemoteJWKSet, customFetch, jwtVerify } from "jose";
import { Agent, request } from "node:https";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { issuer, ca, cert, key, port, audience } = JSON.parse((await lines.next()).value);
const agent = new Agent({ ca });
const keys = createRemoteJWKSet(new URL(issuer + "/oauth/jwks"), {
  [customFetch]: (url) =>
    new Promise((resolve, reject) =>
      request(url, { agent }, (r) => {
        let text = "";
        r.on("data", (b) => (text += b)).on("end", () => resolve(new Response(text, { status: r.statusCode })));
      })
        .on("error", reject)
        .end(),
    ),
});
const seen = new Set();
const must = (condition, what) => {
  if (!condition) throw new Error(what);
};

async function logout(body) {
  const token = new URLSearchParams(body).get("logout_token");
  const { payload } = await jwtVerify(token, keys, { issuer, audience, typ: "logout+jwt", requiredClaims: ["iat", "exp", "jti", "events"] });
  must(!("nonce" in payload), "a nonce");
  must("sub" in payload || "sid" in payload, "neither sub nor sid");
  must(JSON.stringify(payload.events["http://schemas.openid.net/event/backchannel-logout"]) === "{}", "no event of logout");
  return { jti: payload.jti, sid: payload.sid };
}

async function event(body, type) {
  must(type === "application/secevent+jwt", "content type " + type);
  const { payload } = await jwtVerify(body, keys, { issuer, audience, typ: "secevent+jwt", requiredClaims: ["iat", "jti", "events", "sub_id"] });
  must(!("exp" in payload) && !("sub" in payload), "exp or sub");
  const about = payload.events["https://schemas.openid.net/secevent/caep/event-type/session-revoked"];
  must(Math.abs(about.event_timestamp - Date.now() / 1000) < 300, "event_timestamp");
  return { jti: payload.jti, sid: payload.sub_id.session.id };
}

const server = createServer({ cert, key }, (req, res) => {
  let body = "";
  req.on("data", (b) => (body += b)).on("end", async () => {
    const say = { path: req.url };
    try {
      Object.assign(say, await (req.url === "/logout" ? logout(body) : event(body, req.headers["content-type"])));
      say.again = seen.has(say.jti);
      seen.add(say.jti);
      res.writeHead(req.url === "/logout" ? 200 : 202, { "Cache-Control": "no-store" }).end();
    } catch (e) {
      say.error = e.message;
      res.writeHead(400, { "Content-Type": "application/json" }).end(JSON.stringify({ err: "invalid_request", description: e.message }));
    }
    process.stdout.write(JSON.stringify(say) + "\n");
  });
});
server.listen(port, "127.0.0.1", () => process.stdout.write(JSON.stringify({ port: server.address().port }) + "\n"));
for await (const _ of lines);
process.exit();
