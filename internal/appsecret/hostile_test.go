package appsecret_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev/internal/appsecret"
	"claviger.dev/internal/recipe"
)

// TestHostile gives every kind what is meant to hurt, as large as is read, and
// bounds what it takes.
func TestHostile(t *testing.T) {
	fill := func(s string) string { return strings.Repeat(s, appsecret.MaxSize/len(s)) }
	bomb := `<!DOCTYPE b [<!ENTITY a0 "aaaaaaaaaa">`
	for i := range 60 {
		n := string(rune('0' + i%10))
		bomb += `<!ENTITY a` + n + ` "` + strings.Repeat("&a"+string(rune('0'+(i+9)%10))+";", 20) + `">`
	}
	hostile := map[string]string{
		"a line of 1 MB":    "APP_SECRET=" + fill("x")[20:],
		"names":             fill("APP_SECRET=x\n"),
		"quotes":            fill("A=\"\\\"\n"),
		"an open quote":     "APP_SECRET=\"" + fill("\\\"")[20:],
		"parentheses":       "import django\nSECRET_KEY = " + strings.Repeat("(", 100_000) + "'x'" + strings.Repeat(")", 100_000),
		"open parentheses":  "import django\nSECRET_KEY = " + fill("(")[40:],
		"few of them":       "import django\nSECRET_KEY = " + strings.Repeat("(", 4000) + "'x'" + strings.Repeat(")", 4000),
		"blocks":            fill("if x:\n "),
		"deeper blocks":     nested(1400),
		"assignments":       fill("SECRET_KEY='x'\n"),
		"in one statement":  fill("SECRET_KEY='x',"),
		"strings":           "import django\nSECRET_KEY = " + fill("'x' ")[40:],
		"open strings":      fill("'''\\\n"),
		"backslashes":       fill("\\\n"),
		"colons":            fill("SECRET_KEY:"),
		"entities":          bomb + "]><configuration><system.web><machineKey decryptionKey=\"&a9;\"/></system.web></configuration>",
		"elements":          fill("<a>"),
		"attributes":        "<machineKey " + fill("a='' ")[40:] + "/>",
		"keys":              "<a>" + fill("<machineKey/>")[40:] + "</a>",
		"comments":          fill("<!-- -->"),
		"laughing YAML":     "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\njwt:\n  secret: *d\n",
		"lists":             fill("["),
		"lists, of a file":  strings.Repeat("[", 100_000),
		"maps":              strings.Repeat("{a: ", 30_000),
		"items":             strings.Repeat("- a\n", 30_000),
		"continued lines":   fill("a\\\n"),
		"escapes":           "jwt.secret=" + fill("\\u0041")[20:],
		"parts":             fill("--"),
		"UTF-16, ends half": "\xff\xfe" + fill("<\x00")[20:] + "x",
		"UTF-16, lone":      "\xff\xfe" + fill("\x00\xd8")[20:],
		"zeros":             fill("\x00"),
	}
	for name, data := range hostile {
		for _, kind := range appsecret.Kinds() {
			src := appsecret.Source{Data: []byte(data[:min(len(data), appsecret.MaxSize)]), Key: []byte(strings.Repeat("0", 32)), Now: now}
			if kind == appsecret.KeyRing {
				src = appsecret.Source{Ring: []appsecret.File{{Name: "key-1.xml", Data: []byte(data[:min(len(data), 60<<10)])}}, Now: now}
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := appsecret.Read(kind, src, appsecret.Choice{})
			runtime.ReadMemStats(&after)
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("%s as %s: an error of %d bytes", name, kind, len(err.Error()))
			}
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 16 {
				t.Errorf("%s as %s: %d MiB were allocated", name, kind, got)
			}
		}
	}
	if _, err := appsecret.Read(appsecret.Dotenv, appsecret.Source{Data: make([]byte, appsecret.MaxSize+1)}, appsecret.Choice{}); err == nil {
		t.Error("a file beyond the limit is read")
	}
	if _, err := appsecret.Read(appsecret.KeyRing, appsecret.Source{Ring: make([]appsecret.File, appsecret.MaxEntries+1)}, appsecret.Choice{}); err == nil {
		t.Error("a ring beyond the limit is read")
	}
}

// nested is Python with blocks in blocks.
func nested(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(strings.Repeat(" ", i/2) + "if x:\n")
	}
	return b.String()
}

// fuzz reads a file of a kind: no panic, no secret in what is said of it, and
// the same in UTF-16.
func fuzz(f *testing.F, kind appsecret.Kind, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(s), "", "", uint8(0))
		f.Add([]byte(s), "APP_SECRET", "symfony", uint8(3))
	}
	words := removedWords + shownWords(f)
	f.Fuzz(func(t *testing.T, data []byte, name, set string, line uint8) {
		want := appsecret.Choice{Name: name, Line: int(line)}
		if parsed, err := recipe.ParseSet(set); err == nil {
			want.Set = parsed
		}
		src := appsecret.Source{Data: data, Key: []byte(strings.Repeat("0", 32)), Now: now}
		switch kind {
		case appsecret.KeyRing:
			src = appsecret.Source{Ring: []appsecret.File{{Name: "key-1.xml", Data: data}}, Now: now}
		case appsecret.Credentials: // what is in them is fuzzed: the seal is not to be guessed
			src.Data = sealCredentials(t, strings.Repeat("0", 32), data)
		}
		got, err := appsecret.Read(kind, src, want)
		if err != nil {
			return
		}
		if len(got.Secrets) == 0 || got.Set == "" {
			t.Fatalf("nothing was read, without an error: %+v", got)
		}
		shown := got.Change("place", "prod/app/key") + strings.Join(got.Notes, "\n")
		for _, s := range got.Secrets {
			if err := got.Set.Check(s.Material); err != nil {
				t.Errorf("a secret that the set does not take: %v", err)
			}
			for _, part := range got.Set.Parts(s.Material) {
				if text := string(part); len(text) >= 16 && !strings.Contains(name+words, text) && strings.Contains(shown, text) {
					t.Errorf("the secret is shown: %s", shown)
				}
			}
		}
		if got.Encoding != "UTF-8" || kind == appsecret.Credentials || kind == appsecret.KeyRing || strings.HasPrefix(string(data), "\xef\xbb\xbf") {
			return
		}
		src.Data = []byte(wide(string(data), binary.BigEndian, true))
		if len(src.Data) > appsecret.MaxSize {
			return
		}
		again, err := appsecret.Read(kind, src, want)
		if err != nil {
			t.Fatalf("in UTF-16: %v", err)
		}
		if diff := cmp.Diff(found(got), found(again)); diff != "" {
			t.Errorf("in UTF-16 (-UTF-8 +UTF-16):\n%s", diff)
		}
	})
}

// removedWords are words of a diff that a fuzzed secret can be.
const removedWords = `--- place
+++ place
from claviger.django import random_secret
SECRET_KEY = random_secret()
CLAVIGER = {"KEY": "prod/app/key"}
INSTALLED_APPS = ["claviger.django", *INSTALLED_APPS]  # below the list
SECRET_KEY_FALLBACKS = <removed> is as 'startproject' made it, and marked insecure by that`

// shownWords are those of the changes of other places.
func shownWords(f *testing.F) string {
	f.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", "change", "*.diff"))
	if err != nil || len(names) == 0 {
		f.Fatalf("no changes to read: %v", err)
	}
	var b strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

func FuzzDotenv(f *testing.F) {
	fuzz(f, appsecret.Dotenv, "APP_KEY="+laravelKey+"\nAPP_PREVIOUS_KEYS=0123456789abcdef,fedcba9876543210\n",
		"export APP_SECRET='"+one+"' # x\n", "AUTH_SECRET=\""+one+"\"\nAUTH_SECRET_1="+two, "A=`x\ny`\nAPP_SECRET=\"a\\\"b\"", "APP_SECRET=${A}#b")
}

func FuzzPython(f *testing.F) {
	fuzz(f, appsecret.Python, "import django\nSECRET_KEY: str = ('"+one+"' \"\\x41\\u00e9\\101\")\nSECRET_KEY_FALLBACKS = ['"+two+"', r'''"+six+"''']\n",
		"from flask import Flask\nif x:\n\tapp.config['SECRET_KEY'] = b'\\xff"+one+"'\n", "app.secret_key = \\\n'x'; flask", "class C:\n  f(SECRET_KEY='x', y=(1,\n2)) # flask", "SECRET_KEY = '''")
}

func FuzzWebConfig(f *testing.F) {
	fuzz(f, appsecret.WebConfig, webConfig(`decryptionKey="`+dec+`" validationKey="`+val+`" compatibilityMode="Framework45"`, ""),
		webConfig(`decryptionKey="`+dec+`" validationKey="`+val+`,IsolateApps"`, `<httpRuntime targetFramework="4.7.2"/>`), "<a><location path='x'><machineKey/></location></a>", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>")
}

func FuzzYAML(f *testing.F) {
	fuzz(f, appsecret.YAML, "production: &p\n  secret_key_base: "+one+"\ntest:\n  <<: *p\n", "jwt:\n  secret: |\n    "+one+"\n", "framework: {secret: '"+one+"'}", "a: &a [*a]")
}

func FuzzProperties(f *testing.F) {
	fuzz(f, appsecret.Properties, "jwt.secret = "+one+"\\\n  more\\u0041\n", "app.jwt.secret:"+one, "\\u00\\\\=x\njwt.secret")
}

func FuzzCredentials(f *testing.F) {
	fuzz(f, appsecret.Credentials, string(marshal("secret_key_base: "+one)), string(marshal(strings.Repeat("# x\n", 99)+"production:\n  secret_key_base: '"+one+"'")), "\x04\x08\"\x04\xff\xff\xff\x7f")
}

func FuzzKeyRing(f *testing.F) {
	fuzz(f, appsecret.KeyRing, string(ringFile(1, -10, 80, "").Data), string(ringFile(2, -10, 80, `<encryptedSecret decryptorType="Dpapi"/>`).Data))
}
