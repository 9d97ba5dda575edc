package appaudit_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/appaudit"
)

// tree makes a file system of files that are given with their text.
func tree(files map[string]string) fs.FS {
	out := fstest.MapFS{}
	for name, text := range files {
		out[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
	}
	return out
}

func places(r *appaudit.Report) []string {
	var out []string
	for _, f := range r.Findings {
		out = append(out, fmt.Sprintf("%s:%d %s %s", f.File, f.Line, f.Severity, f.Rule))
	}
	return out
}

func look(t *testing.T, files fs.FS, framework string) *appaudit.Report {
	t.Helper()
	r, err := appaudit.Look(t.Context(), files, framework)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if f.Means == "" || f.Do == "" || strings.HasSuffix(f.Means, ".") || strings.HasSuffix(f.Do, ".") {
			t.Errorf("%s does not say what it means and what to do: %+v", f.Rule, f)
		}
	}
	return r
}

func TestDjango(t *testing.T) {
	t.Parallel()
	r := look(t, tree(map[string]string{
		"shop/settings.py":          "import os\nSECRET_KEY = os.environ['DJANGO_SECRET_KEY']  # settings.SECRET_KEY\nSIGNING_BACKEND = 'shop.sign.Backend'\nSESSION_SERIALIZER = 'django.contrib.sessions.serializers.PickleSerializer'\n",
		"shop/tokens.py":            "import jwt, hmac\nfrom django.conf import settings\n\ndef token(user):\n    return jwt.encode({'sub': user.pk}, settings.SECRET_KEY)\n\ndef two(user):\n    return jwt.decode(\n        user.token,\n        settings.SECRET_KEY)\n\ndef mac(m):\n    return hmac.new(settings.SECRET_KEY.encode(), m)\n",
		"shop/links.py":             "from django.core.signing import Signer, TimestampSigner, dumps\na = Signer()\nb = Signer(key='a key of its own')\nc = TimestampSigner(salt='x')\nd = Signer(settings.SECRET_KEY)\ne = dumps({}, salt='y')\n",
		"shop/views.py":             "def view(request):\n    return request.get_signed_cookie('cart')\n# Signer(key='x')\n",
		"shop/readme.txt":           "settings.SECRET_KEY",
		".venv/x.py":                "settings.SECRET_KEY",
		"django/core/signing.py":    "key = settings.SECRET_KEY",
		"lib/pkg/django_compat.py":  "SECRET = getattr(settings, 'SECRET_KEY')",
		"node_modules/x/gyp/gyp.py": "hmac.new(x)",
	}), "django")
	want := []string{
		"lib/pkg/django_compat.py:1 breaks settings.SECRET_KEY",
		"shop/links.py:3 look Signer(key=)",
		"shop/links.py:5 breaks settings.SECRET_KEY in a signer",
		"shop/settings.py:2 look SECRET_KEY from the environment",
		"shop/settings.py:3 look SIGNING_BACKEND",
		"shop/settings.py:4 danger PickleSerializer",
		"shop/tokens.py:5 breaks jwt.encode",
		"shop/tokens.py:8 look jwt.encode with a key",
		"shop/tokens.py:10 breaks settings.SECRET_KEY",
		"shop/tokens.py:13 breaks settings.SECRET_KEY",
		"shop/tokens.py:13 look hmac.new",
	}
	if diff := cmp.Diff(want, places(r)); diff != "" || r.Files != 5 {
		t.Errorf("%d files (-want +got):\n%s", r.Files, diff)
	}
}

func TestRails(t *testing.T) {
	t.Parallel()
	r := look(t, tree(map[string]string{
		"app/models/user.rb":                     "class User < ApplicationRecord\n  encrypts :email\n  def token\n    Rails.application.message_verifier(:t).generate(id) # secret_key_base\n  end\n  def old\n    ActiveSupport::MessageVerifier.new(Rails.application.secret_key_base).generate(id)\n  end\nend\n",
		"app/lib/box.rb":                         "KEY = Rails.application.key_generator.generate_key('box', 32)\nE = ActiveSupport::MessageEncryptor.new(KEY)\nV = ActiveSupport::MessageVerifier.new('own', serializer: Marshal)\nx = \"# not a comment\"; Marshal.load(x)\n",
		"config/initializers/cookies.rb":         "Rails.application.config.action_dispatch.cookies_serializer = :marshal\nRails.application.config.action_dispatch.cookies_rotations.tap { |c| c.rotate :encrypted, old }\n",
		"config/initializers/new.rb":             "Rails.application.config.action_dispatch.cookies_serializer = :json\n",
		"vendor/actionpack-6.1.7/lib/cookies.rb": "secret_key_base\n",
	}), "rails")
	want := []string{
		"app/lib/box.rb:1 look key_generator",
		"app/lib/box.rb:2 look MessageEncryptor.new",
		"app/lib/box.rb:3 look MessageVerifier.new",
		"app/lib/box.rb:3 danger message serializer",
		"app/lib/box.rb:4 danger Marshal.load",
		"app/models/user.rb:2 look encrypts",
		"app/models/user.rb:7 breaks secret_key_base",
		"app/models/user.rb:7 look MessageVerifier.new",
		"config/initializers/cookies.rb:1 danger cookies_serializer :marshal",
		"config/initializers/cookies.rb:2 look rotate",
	}
	if diff := cmp.Diff(want, places(r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLaravel(t *testing.T) {
	t.Parallel()
	r := look(t, tree(map[string]string{
		"config/app.php":                      "<?php\nreturn [\n    'key' => env('APP_KEY'),\n    // 'key' => env('APP_KEY'),\n    'cipher' => 'AES-256-CBC',\n];\n",
		"app/Services/Links.php":              "<?php\n$a = hash_hmac('sha256', $url, config('app.key'));\n$b = URL::signedRoute('x');\n$c = new Encrypter(base64_decode($own));\n$d = encrypt($array);\n$e = Crypt::encryptString('x');\n$f = unserialize($x);\n$g = unserialize($x, ['allowed_classes' => false]);\n$h = env('APP_KEY');\n$i = app('encrypter')->getKey();\n * config('app.key') in a comment\n",
		"app/Http/Middleware/Cookies.php":     "<?php\nclass EncryptCookies extends Middleware {\n    protected static $serialize = true;\n}\n",
		"vendor/laravel/framework/Crypt.php":  "<?php config('app.key');",
		"vendor/tymon/jwt-auth/src/Lcob.php":  "<?php JWT::encode($x, $key);",
		"resources/views/welcome.blade.html":  "config('app.key')",
		"app/Http/Middleware/Covered.php":     "<?php\nclass EncryptCookies extends \\Claviger\\Laravel\\EncryptCookies {}\n",
		"database/migrations/2024_create.php": "<?php\n",
	}), "laravel")
	want := []string{
		"app/Http/Middleware/Cookies.php:2 look EncryptCookies",
		"app/Http/Middleware/Cookies.php:3 danger serialize in cookies",
		"app/Services/Links.php:2 breaks config('app.key')",
		"app/Services/Links.php:2 breaks hash_hmac with the key",
		"app/Services/Links.php:4 look new Encrypter",
		"app/Services/Links.php:5 danger encrypt()",
		"app/Services/Links.php:7 danger unserialize",
		"app/Services/Links.php:9 breaks env('APP_KEY')",
		"app/Services/Links.php:10 breaks getKey",
		"config/app.php:3 look config/app.php",
		"vendor/tymon/jwt-auth/src/Lcob.php:1 look JWT",
	}
	if diff := cmp.Diff(want, places(r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestInstalled looks at what Debian installs: the parts of the frameworks that
// read the secret are seen where they are not known to be covered, and those
// that do not are silent.
func TestInstalled(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		dir, framework string
		want           map[string]int // findings by file; every other file has none that breaks
		files          int            // at least
	}{
		{"/usr/lib/python3/dist-packages/django/contrib/humanize", "django", nil, 3},
		{"/usr/lib/python3/dist-packages/django/contrib/staticfiles", "django", nil, 10},
		{"/usr/lib/python3/dist-packages/django/contrib/auth", "django", map[string]int{"tokens.py": 1}, 30},
		{"/usr/share/rubygems-integration/all/gems/rack-test-2.0.2", "rails", nil, 1},
		{"/usr/share/php/Illuminate/Encryption", "laravel", map[string]int{"EncryptionServiceProvider.php": 0}, 3},
	} {
		if _, err := os.Stat(test.dir); err != nil {
			continue // 'make setup' installs it; the trees above are what must be there
		}
		r := look(t, os.DirFS(test.dir), test.framework)
		got := map[string]int{}
		for _, f := range r.Findings {
			if f.Severity == appaudit.Breaks {
				got[f.File]++
			}
		}
		for name, n := range test.want {
			if (got[name] > 0) != (n > 0) {
				t.Errorf("%s: %s has %d findings, want %d", test.dir, name, got[name], n)
			}
			delete(got, name)
		}
		if len(got) > 0 || r.Files < test.files {
			t.Errorf("%s: of %d files these break: %v", test.dir, r.Files, got)
		}
	}
}

// TestBounds checks what is left out and said to be.
func TestBounds(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{
		"large.py":    {Data: make([]byte, 5<<20), Mode: 0o644},
		"long.py":     {Data: []byte(strings.Repeat("x", 2<<20)), Mode: 0o644},
		"link.py":     {Data: []byte("elsewhere.py"), Mode: fs.ModeSymlink | 0o777},
		"pipe.py":     {Mode: fs.ModeNamedPipe | 0o600},
		"binary.py":   {Data: []byte("\x00\xff\xfe settings.SECRET_KEY \x00"), Mode: 0o644},
		"findings.py": {Data: []byte(strings.Repeat("settings.SECRET_KEY\n", 10_500)), Mode: 0o644},
	}
	r := look(t, files, "django")
	var gaps []string
	for _, g := range r.NotRead {
		gaps = append(gaps, g.Path+": "+g.Reason)
	}
	want := []string{"large.py: larger than 4 MiB", "link.py: no regular file", "long.py: a line is longer than 1 MiB", "pipe.py: no regular file"}
	if diff := cmp.Diff(want, gaps); diff != "" {
		t.Errorf("not read (-want +got):\n%s", diff)
	}
	if len(r.Findings) != 10_000 || r.More != 501 {
		t.Errorf("%d findings and %d more", len(r.Findings), r.More)
	}
	if _, err := appaudit.Look(t.Context(), files, "rocket"); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("another framework: %v", err)
	}
	dir := t.TempDir() // links that lead in a circle
	if err := os.Symlink(dir, dir+"/loop"); err != nil {
		t.Fatal(err)
	}
	if r := look(t, os.DirFS(dir), "rails"); r.Files != 0 {
		t.Errorf("%d files in a circle", r.Files)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := appaudit.Look(ended, files, "django"); err == nil {
		t.Error("a walk goes on when it is told to end")
	}
}
