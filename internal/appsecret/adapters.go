package appsecret

import (
	"fmt"
	"path"
	"strings"

	"claviger.dev/internal/recipe"
)

// Adapter is what takes a secret's place in an application.
type Adapter string

// The adapters, by their directories, and what there is where none fits.
const (
	PythonAdapter     Adapter = "sdk/python"
	RubyAdapter       Adapter = "sdk/ruby"
	PHPAdapter        Adapter = "sdk/php"
	NodeAdapter       Adapter = "sdk/node"
	ASPNETAdapter     Adapter = "sdk/dotnet/Claviger.AspNet"
	ASPNETCoreAdapter Adapter = "sdk/dotnet/Claviger.AspNetCore"
	ProxyAdapter      Adapter = "claviger agent proxy"

	NoAdapter Adapter = "" // tokens of the set are never made in custody: the application keeps its secret
)

// Adapter returns what takes the secret's place.
func (f *Found) Adapter() Adapter {
	switch f.Set {
	case recipe.Django, recipe.Flask, recipe.Itsdangerous:
		return PythonAdapter
	case recipe.Rails:
		return RubyAdapter
	case recipe.Laravel, recipe.Symfony:
		return PHPAdapter
	case recipe.CookieSignature, recipe.Keygrip, recipe.Iron, recipe.AuthJS:
		return NodeAdapter
	case recipe.JWT:
		if f.Kind == Dotenv { // properties and YAML are of frameworks in Java
			return NodeAdapter
		}
	case recipe.ASPNET:
		return ASPNETAdapter
	case recipe.ASPNETLegacy:
		return NoAdapter
	case recipe.DataProtection:
		return ASPNETCoreAdapter
	}
	return ProxyAdapter
}

// instead is what stands in the place afterwards.
func (f *Found) instead(h hunk, key string) []string {
	switch {
	case f.Kind == Python && f.Set == recipe.Django:
		return django(key)
	case f.Kind == Python && f.Set == recipe.Flask && h.app != "":
		return flask(h.app, key)
	case f.Kind == Dotenv && f.Set == recipe.Laravel:
		if f.unprefixed {
			return []string{"CLAVIGER_KEY=" + key, "CLAVIGER_PREFIXED=false"}
		}
		return []string{"CLAVIGER_KEY=" + key}
	case f.Kind == YAML && f.Set == recipe.Symfony:
		return []string{"secret: " + symfonySecret}
	case f.Kind == WebConfig:
		return []string{f.machineKeyAfter}
	}
	return nil
}

const symfonySecret = "'%env(claviger_random:APP_SECRET)%'"

// edits are what changes beside the place.
func (f *Found) edits(place, key string) []edit {
	name := clean(f.Secrets[len(f.Secrets)-1].Name)
	switch f.Adapter() {
	case PythonAdapter:
		return f.editsPython(name, key)
	case RubyAdapter:
		return []edit{
			{file: "Gemfile", where: "beside the others", new: []string{`gem "claviger", path: "sdk/ruby", require: "claviger/rails"`}},
			{file: "config/application.rb", where: "in the class of the application", new: []string{fmt.Sprintf("    config.claviger.key = %q", key)}},
		}
	case PHPAdapter:
		return f.editsPHP(name, key)
	case NodeAdapter:
		return f.editsNode(name, key)
	case ASPNETAdapter:
		return []edit{{file: place, where: "in <configuration>", new: append(append([]string{"<appSettings>"}, f.settings(key)...), "</appSettings>")}}
	case ASPNETCoreAdapter:
		options := fmt.Sprintf("o.Key = %q", key)
		if f.gcm {
			options = fmt.Sprintf("{ o.Key = %q; o.Cipher = \"gcm\"; }", key)
		}
		return []edit{
			{file: "*.csproj", where: "in an <ItemGroup>", new: []string{`    <ProjectReference Include="sdk/dotnet/Claviger.AspNetCore/Claviger.AspNetCore.csproj" />`}},
			{
				file: "Program.cs", where: "where Data Protection is set up",
				old: []string{`builder.Services.AddDataProtection().SetApplicationName(NAME).PersistKeysToFileSystem(FOLDER);`},
				new: []string{`builder.Services.AddDataProtection().SetApplicationName(NAME); // the same name: it is in every token`,
					"builder.Services.AddClavigerDataProtection(o => " + options + ");"},
			},
		}
	case ProxyAdapter:
		return f.editsProxy(place, name, key)
	}
	return nil
}

func (f *Found) settings(key string) []string {
	out := []string{fmt.Sprintf(`  <add key="claviger:Key" value=%q />`, key),
		`  <add key="claviger:Url" value="https://HOST:8443" />`,
		`  <add key="claviger:Thumbprint" value="THUMBPRINT OF THE CLIENT CERTIFICATE" />`}
	for _, s := range f.algorithms {
		out = append(out, fmt.Sprintf(`  <add key="claviger:%s" value=%q />`, s[0], s[1]))
	}
	return out
}

func django(key string) []string {
	return []string{"from claviger.django import random_secret", "SECRET_KEY = random_secret()", fmt.Sprintf("CLAVIGER = {\"KEY\": %q}", key),
		`INSTALLED_APPS = ["claviger.django", *INSTALLED_APPS]  # below the list`}
}

func flask(app, key string) []string {
	return []string{"import claviger, claviger.flask", fmt.Sprintf("claviger.flask.install(%s, claviger.Key(%q))", app, key)}
}

func (f *Found) editsPython(name, key string) []edit {
	read := []string(nil) // what reads the secret now
	if f.Kind == Dotenv {
		read = []string{fmt.Sprintf("os.environ[%q]", name)}
	}
	reads := func(format string) []string {
		if read == nil {
			return nil
		}
		return []string{fmt.Sprintf(format, read[0])}
	}
	switch {
	case f.Set == recipe.Itsdangerous:
		return []edit{{
			file: "*.py", where: "where serializers are made", old: []string{"serializer = URLSafeTimedSerializer(SECRET, salt=SALT)"},
			new: []string{"import claviger", "from claviger.itsdangerous import signer", fmt.Sprintf("key = claviger.Key(%q)", key),
				`serializer = URLSafeTimedSerializer("", salt=SALT, signer=signer(key))`},
		}}
	case f.Set == recipe.Django && f.Kind != Python:
		return []edit{{file: "settings.py", where: "where the secret is read", old: reads("SECRET_KEY = %s"), new: django(key)}}
	case f.Set == recipe.Flask && (f.Kind != Python || f.hunks[len(f.hunks)-1].app == ""):
		return []edit{{file: "*.py", where: "where the application is made, below its configuration", old: reads("app.secret_key = %s"), new: flask("app", key)}}
	}
	return nil
}

func (f *Found) editsPHP(name, key string) []edit {
	if f.Set == recipe.Laravel {
		return []edit{
			{file: "config/app.php", where: "in 'providers', where packages are not discovered", new: []string{`        Claviger\Laravel\ClavigerServiceProvider::class,`}},
			{
				file: "app/Http/Middleware/EncryptCookies.php", where: "until Laravel 10",
				old: []string{`use Illuminate\Cookie\Middleware\EncryptCookies as Middleware;`}, new: []string{`use Claviger\Laravel\EncryptCookies as Middleware;`},
			},
		}
	}
	out := []edit{
		{file: "config/bundles.php", where: "beside the others", new: []string{`    Claviger\Symfony\ClavigerBundle::class => ['all' => true],`}},
		{file: "config/services.yaml", where: "in parameters", new: []string{"    claviger.key: " + key}},
	}
	if f.Kind != YAML {
		out = append([]edit{{
			file: "config/packages/framework.yaml", where: "in framework",
			old: []string{"    secret: '%env(" + name + ")%'"}, new: []string{"    secret: " + symfonySecret},
		}}, out...)
	}
	return out
}

func (f *Found) editsNode(name, key string) []edit {
	now, variables := "SECRET", ""
	if f.Kind == Dotenv {
		now, variables = "process.env."+name, fmt.Sprintf(", environment: ['%s']", name)
	}
	imports := func(from string) []string {
		return []string{"import { Key } from 'claviger'", from}
	}
	switch f.Set {
	case recipe.CookieSignature:
		return []edit{{
			file: "app.js", where: "where cookies are set up, before all other middleware",
			old: []string{"app.use(cookieParser(" + now + "))", "app.use(session({ secret: " + now + ", ...options }))"},
			new: append(imports("import { custody } from 'claviger/express'"),
				fmt.Sprintf("const cookies = custody({ signed: new Key('%s')%s })", key, variables), "app.use(cookies)",
				"app.use(cookieParser(cookies.secret))", "app.use(session({ secret: cookies.secret, ...options }))"),
		}}
	case recipe.Keygrip:
		return []edit{{
			file: "app.js", where: "where cookies are set up, before all other middleware",
			old: []string{"app.use(cookieSession({ keys: [" + now + "], ...options }))"},
			new: append(imports("import { custody } from 'claviger/express'"),
				fmt.Sprintf("const cookies = custody({ keygrip: new Key('%s')%s })", key, variables), "app.use(cookies)",
				"app.use(cookieSession({ keys: cookies.keys, ...options }))"),
		}}
	case recipe.Iron:
		return []edit{{
			file: "session.js", where: "where iron-session is imported",
			old: []string{"import { getIronSession, sealData, unsealData } from 'iron-session'", "const options = { cookieName: NAME, password: " + now + " }"},
			new: append(imports("import { ironSession } from 'claviger/iron-session'"),
				fmt.Sprintf("const { getIronSession, sealData, unsealData } = ironSession(new Key('%s'))", key), "const options = { cookieName: NAME }"),
		}}
	case recipe.JWT:
		return []edit{{
			file: "*.js", where: "where tokens are made and checked", old: []string{"import jwt from 'jsonwebtoken'"},
			new: append(imports("import { jwt } from 'claviger/jwt'"), fmt.Sprintf("const { sign, verify } = jwt(new Key('%s')) // both asynchronous", key)),
		}}
	}
	lines := []string{"import { Key, randomSecret } from 'claviger'", "", fmt.Sprintf("const key = new Key('%s')", key), "const secret = randomSecret(...VARIABLES)"}
	if name == "NEXTAUTH_SECRET" {
		lines[1] = "import { guard, nextauth, VARIABLES } from 'claviger/auth'"
		return []edit{{
			file: "auth.js", where: "where NextAuth is set up",
			old: []string{"export const authOptions = { secret: " + now + ", providers }", "export default NextAuth(authOptions)"},
			new: append(lines, "export const authOptions = { secret, jwt: nextauth(key), providers }", "export default guard(NextAuth(authOptions))"),
		}}
	}
	lines[1] = "import { authjs, guard, VARIABLES } from 'claviger/auth'"
	return []edit{{
		file: "auth.js", where: "where Auth.js is set up",
		old: []string{"const config = { secret: process.env.AUTH_SECRET, providers }", "const handler = (request) => Auth(request, config)"},
		new: append(lines, "const config = { secret, jwt: authjs(key), providers }", "const handler = guard((request) => Auth(request, config))"),
	}}
}

// editsProxy are the configuration of 'claviger agent proxy', and the command
// that starts the application behind it.
func (f *Found) editsProxy(place, name, key string) []edit {
	app := key
	if parts := strings.Split(key, "/"); len(parts) == 3 {
		app = parts[1]
	}
	write := "secret"
	if f.written == "hex" || f.written == "base64" {
		write = f.written
	}
	value := fmt.Sprintf("{{%s %q}}", write, key)
	file, run := path.Base(place), `exec COMMAND`
	var text []string
	switch f.Kind {
	case Properties:
		text, run = []string{name + "=" + value}, `exec java -jar APPLICATION.jar --spring.config.additional-location="file:$CLAVIGER_PROXY_DIR/"`
	case YAML:
		parts := strings.Split(name, ".")
		for i, part := range parts {
			line := strings.Repeat("  ", i) + part + ":"
			if i == len(parts)-1 {
				line += " '" + value + "'"
			}
			text = append(text, line)
		}
		run = `exec java -jar APPLICATION.jar --spring.config.additional-location="file:$CLAVIGER_PROXY_DIR/"`
	default:
		file, text = app+".env", []string{name + "=" + value}
		run = fmt.Sprintf(`. "$CLAVIGER_PROXY_DIR/%s"; export %s; exec COMMAND`, file, name)
	}
	lines := []string{`listen = "0.0.0.0:8080"`, `upstream = "http://127.0.0.1:3000" # where the application listens`, "",
		"[[cookie]]", `name = "NAME_OF_THE_COOKIE"`}
	lines = append(lines, proxied(f.Set)...)
	lines = append(lines, fmt.Sprintf("key = %q", key), "", "[[file]]", fmt.Sprintf("name = %q", file), "text = '''")
	config := fmt.Sprintf("/etc/claviger/%s.toml", app)
	return []edit{
		{file: config, where: "of 'claviger agent proxy'", new: append(append(lines, text...), "'''")},
		{file: "the command that starts the application", where: "in its service", old: []string{"COMMAND"},
			new: []string{fmt.Sprintf("claviger agent proxy --config %s -- /bin/sh -c '%s'", config, run)}},
	}
}

// proxied is the format of a cookie of a set that has no adapter.
func proxied(set recipe.Set) []string {
	switch set {
	case recipe.JWT:
		return []string{`format = "jwt"`}
	case recipe.Plug:
		return []string{`format = "plug.verifier" # "plug.encrypted" where the session is encrypted`, `params = { salt = "THE SESSION'S signing_salt" }`}
	}
	return []string{`format = "rails.verifier"`}
}
