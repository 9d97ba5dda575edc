// An authorization server that nobody here wrote: oidc-provider, with DPoP and
// nonces required. It says its port, and ends with its standard input.
import { createServer } from "node:http";
import { once } from "node:events";
import { randomBytes } from "node:crypto";
import Provider from "oidc-provider";

const [pageOrigin] = process.argv.slice(2);
const server = createServer().listen(0, "127.0.0.1");
await once(server, "listening");
const issuer = `http://localhost:${server.address().port}`;
const scopes = "openid offline_access orders";
const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "page",
      token_endpoint_auth_method: "none",
      redirect_uris: [pageOrigin + "/back"],
      grant_types: ["authorization_code", "refresh_token"],
      dpop_bound_access_tokens: true,
    },
    { client_id: "api", client_secret: "of-the-test", redirect_uris: [], response_types: [], grant_types: [], token_endpoint_auth_method: "client_secret_basic" },
  ],
  cookies: { keys: [randomBytes(32).toString("hex")] },
  scopes: scopes.split(" "),
  clientBasedCORS: () => true,
  issueRefreshToken: () => true,
  rotateRefreshToken: true,
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
    grant.addOIDCScope(scopes);
    await grant.save();
    return grant;
  },
  ttl: { AccessToken: 600, AuthorizationCode: 60, Grant: 3600, Interaction: 600, RefreshToken: 3600, Session: 3600, IdToken: 600 },
  features: {
    devInteractions: { enabled: true },
    dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true, allowedPolicy: () => true },
  },
});
server.on("request", provider.callback());
process.stdout.write(issuer + "\n");
process.stdin.on("end", () => process.exit()).resume();
