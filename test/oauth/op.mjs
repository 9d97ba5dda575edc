// An OpenID provider that nobody here wrote: oidc-provider, where people log in
// by a form. It says that it listens, and ends with its standard input.
import { createServer } from "node:http";
import { once } from "node:events";
import { randomBytes } from "node:crypto";
import Provider from "oidc-provider";

const [port, broker] = process.argv.slice(2);
const provider = new Provider(`http://localhost:${port}`, {
  clients: [
    {
      client_id: "claviger",
      token_endpoint_auth_method: "private_key_jwt",
      token_endpoint_auth_signing_alg: "ES256",
      jwks_uri: broker + "/oauth/jwks",
      redirect_uris: [broker + "/oauth/callback"],
      grant_types: ["authorization_code"],
      backchannel_logout_uri: broker + "/oauth/backchannel-logout",
      backchannel_logout_session_required: true,
    },
  ],
  cookies: { keys: [randomBytes(32).toString("hex")] },
  claims: { openid: ["sub"], profile: ["preferred_username"] },
  conformIdTokenClaims: false,
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, preferred_username: id + "@example.org" }) }),
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
    grant.addOIDCScope("openid profile");
    await grant.save();
    return grant;
  },
  // Its own refuses addresses of this host, which is where all of this is.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true }, backchannelLogout: { enabled: true }, rpInitiatedLogout: { enabled: true } },
});
provider.on("backchannel.error", (_, err) => console.error("backchannel:", err));
provider.on("grant.error", (_, err) => console.error("grant:", err.message, err.error_description, err.error_detail));
const server = createServer(provider.callback()).listen(Number(port), "127.0.0.1");
await once(server, "listening");
process.stdout.write("listening\n");
process.stdin.on("end", () => process.exit()).resume();
