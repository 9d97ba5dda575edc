package appsecret_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev/internal/appsecret"
	"claviger.dev/internal/proxy"
	"claviger.dev/internal/recipe"
)

// place is one that a change is shown for.
type place struct {
	path string
	kind appsecret.Kind
	data string
	want appsecret.Choice
	key  string // of credentials: master.key
}

func places(t *testing.T) map[string]place {
	const master = "00112233445566778899aabbccddeeff"
	keys := `decryptionKey="` + dec + `" validationKey="` + val + `"`
	env := func(name string, set recipe.Set) place {
		return place{path: "/srv/shop/.env", kind: appsecret.Dotenv, data: "A=" + six + "\n" + name + "=" + one + " # " + six + "\n", want: appsecret.Choice{Set: set}}
	}
	python := func(text string) place {
		return place{path: "/srv/shop/shop.py", kind: appsecret.Python, data: text}
	}
	return map[string]place{
		"django":            python("import django\nSECRET_KEY_FALLBACKS = [\n  '" + two + "']\nSECRET_KEY = '" + one + "'  # " + six + "\n"),
		"django-env":        env("DJANGO_SECRET_KEY", ""),
		"flask-attribute":   python("from flask import Flask\ndef make():\n    self.app = Flask('x')\n    self.app.secret_key = b'" + one + "'\n"),
		"flask-item":        python("from flask import Flask\napp.config[\"SECRET_KEY\"] = ('" + one + "'\n  '" + two + "')\n"),
		"flask-class":       python("import flask\nclass Config:\n\tSECRET_KEY = '" + one + "'\n\tSECRET_KEY_FALLBACKS = ['" + two + "']\n"),
		"flask-env":         env("FLASK_SECRET_KEY", ""),
		"itsdangerous":      {path: "/srv/shop/shop.py", kind: appsecret.Python, data: "SECRET_KEY = '" + one + "'\n", want: appsecret.Choice{Set: recipe.Itsdangerous}},
		"rails-credentials": {path: "/srv/shop/config/credentials.yml.enc", kind: appsecret.Credentials, data: string(sealCredentials(t, master, marshal("secret_key_base: "+one+"\n"))), key: master},
		"rails-env":         env("SECRET_KEY_BASE", ""),
		"rails-secrets":     {path: "/srv/shop/config/secrets.yml", kind: appsecret.YAML, data: "production:\n  secret_key_base: " + one + "\n"},
		"laravel":           {path: "/srv/shop/.env", kind: appsecret.Dotenv, data: "APP_PREVIOUS_KEYS=0123456789abcdef\nAPP_NAME=x\nAPP_KEY=" + laravelKey + " # " + six},
		"laravel-raw":       {path: "/srv/shop/.env", kind: appsecret.Dotenv, data: "APP_KEY=mk-test-laravel-app-key-0001-xxx\n"},
		"symfony":           env("APP_SECRET", ""),
		"symfony-yaml":      {path: "/srv/shop/config/packages/framework.yaml", kind: appsecret.YAML, data: "framework:\n    session: true\n    secret: " + one + "\n"},
		"express":           env("SESSION_SECRET", recipe.CookieSignature),
		"express-yaml":      {path: "/srv/shop/config/default.yaml", kind: appsecret.YAML, data: "session:\n  secret: " + one + "\n", want: appsecret.Choice{Set: recipe.CookieSignature}},
		"cookie-session":    env("COOKIE_SECRET", recipe.Keygrip),
		"iron-session":      env("SESSION_SECRET", recipe.Iron),
		"next-auth":         env("NEXTAUTH_SECRET", ""),
		"authjs":            {path: "/srv/shop/.env.local", kind: appsecret.Dotenv, data: "AUTH_SECRET_1=" + two + "\nAUTH_SECRET=" + one + "\n"},
		"jwt":               env("JWT_SECRET", ""),
		"jwt-properties":    {path: "/srv/shop/application.properties", kind: appsecret.Properties, data: "server.port=8080\napp.jwt.secret = mk-test-\\\n   not-a-real-secret-0001-with-enough-bytes\n"},
		"jwt-yaml":          {path: "/srv/shop/application.yml", kind: appsecret.YAML, data: "app:\n  jwt:\n    secret: " + laravelKey[7:] + "\n", want: appsecret.Choice{Encoding: "base64"}},
		"phoenix":           env("SECRET_KEY_BASE", recipe.Plug),
		"aspnet":            {path: `/srv/shop/web.config`, kind: appsecret.WebConfig, data: webConfig(keys+` compatibilityMode="Framework45" applicationName="shop" validation="SHA1" decryption="Auto"`, "")},
		"aspnet-legacy":     {path: `/srv/shop/web.config`, kind: appsecret.WebConfig, data: webConfig(keys, "")},
		"aspnet-core":       {path: "/srv/shop/keys", kind: appsecret.KeyRing},
		"aspnet-core-gcm":   {path: "/srv/shop/keys", kind: appsecret.KeyRing, data: "AES_256_GCM"},
	}
}

// TestChange holds what is shown for each place to testdata/change, whose files
// CHANGE_UPDATE=1 writes. No part of a secret is in any of them.
func TestChange(t *testing.T) {
	t.Parallel()
	all := places(t)
	for name, p := range all {
		src := appsecret.Source{Data: []byte(p.data), Key: []byte(p.key), Now: now}
		if p.kind == appsecret.KeyRing {
			src.Ring = []appsecret.File{ringFile(1, -100, -10, ""), ringFile(2, -10, 80, "")}
			if p.data != "" {
				src.Ring[1].Data = []byte(strings.ReplaceAll(string(src.Ring[1].Data), "AES_256_CBC", p.data))
			}
		}
		f, err := appsecret.Read(p.kind, src, p.want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := f.Change(p.path, "prod/shop/"+name)
		for _, secret := range []string{"mk-t", "not-a", "real-", "bWst", laravelKey[20:26], dec[:6], strings.ToLower(dec[:6]), val[:6]} {
			if strings.Contains(got, secret) {
				t.Errorf("%s: a part of the secret is shown: %q in\n%s", name, secret, got)
			}
		}
		golden := filepath.Join("testdata", "change", name+".diff")
		if os.Getenv("CHANGE_UPDATE") != "" {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	files, err := os.ReadDir(filepath.Join("testdata", "change"))
	if err != nil || len(files) != len(all) {
		t.Errorf("there are %d files for %d places: %v", len(files), len(all), err)
	}
}

// TestProxyChange loads the configurations that are shown.
func TestProxyChange(t *testing.T) {
	t.Parallel()
	section := regexp.MustCompile(`(?s)--- (/etc/claviger/\S+\.toml)\n.*?@@\n(.*?)---`)
	loaded := 0
	for name := range places(t) {
		text, err := os.ReadFile(filepath.Join("testdata", "change", name+".diff"))
		if err != nil {
			t.Fatal(err)
		}
		found := section.FindSubmatch(text)
		if found == nil {
			continue
		}
		config := regexp.MustCompile(`(?m)^\+`).ReplaceAll(found[2], nil)
		path := filepath.Join(t.TempDir(), "shop.toml")
		if err := os.WriteFile(path, config, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := proxy.Load(path); err != nil {
			t.Errorf("%s: %v\n%s", name, err, config)
		}
		loaded++
	}
	if loaded != 3 {
		t.Errorf("%d configurations of the proxy are shown", loaded)
	}
}
