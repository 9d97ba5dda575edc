package appsecret_test

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/appsecret"
	"claviger.dev/internal/recipe"
)

const (
	one = "mk-test-secret-0001-not-a-real-secret-0001"
	two = "mk-test-secret-0002-not-a-real-secret-0002"
	six = "mk-test-secret-0006-not-a-real-secret-0006"
	dec = "3031323334353637383961626364656630313233343536373839616263646566"
	val = "6D6B2D746573742D6173706E65742D76616C69646174696F6E2D6B65792D303030312D6E6F742D612D7265616C2D7365637265742D2D2D2D2D2D2D2D2D2D2D2D"
)

// found is what is compared: NAME:LINE=MATERIAL of each secret, the oldest first.
func found(f *appsecret.Found) []string {
	var out []string
	for _, s := range f.Secrets {
		out = append(out, fmt.Sprintf("%s:%d=%s", s.Name, s.Line, string(s.Material)))
	}
	return out
}

func pair() string {
	d, _ := hex.DecodeString(dec)
	v, _ := hex.DecodeString(val)
	return string(recipe.Pair(d, v))
}

// wide writes text in UTF-16, with a mark at its start where mark is true.
func wide(text string, order binary.AppendByteOrder, mark bool) string {
	var out []byte
	if mark {
		out = order.AppendUint16(out, 0xfeff)
	}
	for _, unit := range utf16.Encode([]rune(text)) {
		out = order.AppendUint16(out, unit)
	}
	return string(out)
}

func webConfig(attributes, more string) string {
	return "<?xml version=\"1.0\" encoding=\"utf-8\"?>\r\n<configuration>\r\n  <system.web>\r\n    " + more +
		"\r\n    <machineKey " + attributes + " />\r\n  </system.web>\r\n</configuration>\r\n"
}

const laravelKey = "base64:bWstdGVzdC1sYXJhdmVsLWFwcC1rZXktMDAwMS14eHg="

func TestRead(t *testing.T) {
	t.Parallel()
	keys := `decryptionKey="` + dec + `" validationKey="` + val + `"`
	modern := webConfig(keys+` compatibilityMode="Framework45" validation="SHA1"`, "")
	for name, test := range map[string]struct {
		kind appsecret.Kind
		data string
		want appsecret.Choice
		set  recipe.Set
		out  []string
	}{
		"web.config":               {appsecret.WebConfig, modern, appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, UTF-8 mark":   {appsecret.WebConfig, "\ufeff" + modern, appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, UTF-16LE":     {appsecret.WebConfig, wide(modern, binary.LittleEndian, true), appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, UTF-16BE":     {appsecret.WebConfig, wide(modern, binary.BigEndian, true), appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, LE, no mark":  {appsecret.WebConfig, wide(modern, binary.LittleEndian, false), appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, BE, no mark":  {appsecret.WebConfig, wide(modern, binary.BigEndian, false), appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, declared so":  {appsecret.WebConfig, wide(strings.Replace(modern, "utf-8", "utf-16", 1), binary.LittleEndian, true), appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, by target":    {appsecret.WebConfig, webConfig(keys, `<httpRuntime targetFramework="4.7.2" />`), appsecret.Choice{}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, old":          {appsecret.WebConfig, webConfig(keys, `<httpRuntime targetFramework="4.0" />`), appsecret.Choice{}, recipe.ASPNETLegacy, []string{"machineKey:5=" + pair()}},
		"web.config, by the line":  {appsecret.WebConfig, webConfig(keys, `<machineKey decryptionKey="AutoGenerate"/>`), appsecret.Choice{Line: 5, Set: recipe.ASPNET}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"web.config, over lines":   {appsecret.WebConfig, webConfig("\n"+keys, ""), appsecret.Choice{Set: recipe.ASPNET}, recipe.ASPNET, []string{"machineKey:5=" + pair()}},
		"laravel":                  {appsecret.Dotenv, "APP_NAME=Shop\nAPP_KEY=" + laravelKey + "\nDB_PASSWORD='x'\n", appsecret.Choice{}, recipe.Laravel, []string{"APP_KEY:2=mk-test-laravel-app-key-0001-xxx"}},
		"laravel, 32 characters":   {appsecret.Dotenv, "APP_KEY=\"mk-test-laravel-app-key-0001-xxx\"", appsecret.Choice{}, recipe.Laravel, []string{"APP_KEY:1=mk-test-laravel-app-key-0001-xxx"}},
		"laravel, previous":        {appsecret.Dotenv, "APP_KEY=" + laravelKey + "\r\nAPP_PREVIOUS_KEYS=abcdefghijklmnop,,0123456789abcdef\r\n", appsecret.Choice{}, recipe.Laravel, []string{"APP_PREVIOUS_KEYS:2=0123456789abcdef", "APP_PREVIOUS_KEYS:2=abcdefghijklmnop", "APP_KEY:1=mk-test-laravel-app-key-0001-xxx"}},
		"rails":                    {appsecret.Dotenv, "export SECRET_KEY_BASE=" + one + "  # of 2024", appsecret.Choice{}, recipe.Rails, []string{"SECRET_KEY_BASE:1=" + one}},
		"plug":                     {appsecret.Dotenv, "SECRET_KEY_BASE='" + one + "'", appsecret.Choice{Set: recipe.Plug}, recipe.Plug, []string{"SECRET_KEY_BASE:1=" + one}},
		"auth.js":                  {appsecret.Dotenv, "AUTH_SECRET_2=" + two + "\nAUTH_SECRET=\"" + one + "\" # first\n", appsecret.Choice{}, recipe.AuthJS, []string{"AUTH_SECRET:2=" + one, "AUTH_SECRET_2:1=" + two}},
		"next-auth":                {appsecret.Dotenv, "# NEXTAUTH_SECRET=old\nNEXTAUTH_SECRET = " + one, appsecret.Choice{}, recipe.AuthJS, []string{"NEXTAUTH_SECRET:2=" + one}},
		"one of several":           {appsecret.Dotenv, "JWT_SECRET=" + two + "\nAPP_SECRET=" + one, appsecret.Choice{Name: "APP_SECRET"}, recipe.Symfony, []string{"APP_SECRET:2=" + one}},
		"by the set":               {appsecret.Dotenv, "JWT_SECRET=" + two + "\nAPP_SECRET=" + one, appsecret.Choice{Set: recipe.JWT}, recipe.JWT, []string{"JWT_SECRET:1=" + two}},
		"a name of its own":        {appsecret.Dotenv, "A=1\nCART_KEY=" + hex.EncodeToString([]byte(one)), appsecret.Choice{Name: "CART_KEY", Set: recipe.Keygrip, Encoding: "hex"}, recipe.Keygrip, []string{"CART_KEY:2=" + one}},
		"django in .env":           {appsecret.Dotenv, "DEBUG=1\nSECRET_KEY='" + one + "$x#y'\nSECRET_KEY_FALLBACKS=" + two, appsecret.Choice{Set: recipe.Django}, recipe.Django, []string{"SECRET_KEY_FALLBACKS:3=" + two, "SECRET_KEY:2=" + one + "$x#y"}},
		"quoted over lines":        {appsecret.Dotenv, "PEM=\"a\nb\"\nAPP_SECRET=\"" + one + "\nmore\"\nX=1\n", appsecret.Choice{}, recipe.Symfony, []string{"APP_SECRET:3=" + one + "\nmore"}},
		"set twice, by the line":   {appsecret.Dotenv, "APP_SECRET=" + one + "\nAPP_SECRET=" + two, appsecret.Choice{Line: 2}, recipe.Symfony, []string{"APP_SECRET:2=" + two}},
		"settings.py":              {appsecret.Python, "import os\nINSTALLED_APPS = []\n# SECRET_KEY = 'x'\nSECRET_KEY = '" + one + "'  # ours\n", appsecret.Choice{}, recipe.Django, []string{"SECRET_KEY:4=" + one}},
		"settings.py, fallbacks":   {appsecret.Python, "INSTALLED_APPS = []\nSECRET_KEY: str = (\n  'mk-test-secret-0001'\n  \"-not-a-real-secret-0001\")\nSECRET_KEY_FALLBACKS = ['" + two + "', '" + six + "',]\n", appsecret.Choice{}, recipe.Django, []string{"SECRET_KEY_FALLBACKS:5=" + six, "SECRET_KEY_FALLBACKS:5=" + two, "SECRET_KEY:2=" + one}},
		"settings.py, escapes":     {appsecret.Python, "INSTALLED_APPS = ('a',)\nSECRET_KEY = u'\\x41\\u00e9\\101\\n\\'\\q" + one + "'; X = 1", appsecret.Choice{}, recipe.Django, []string{"SECRET_KEY:2=A\u00e9A\n'\\q" + one}},
		"settings.py, raw":         {appsecret.Python, "INSTALLED_APPS = 1\nSECRET_KEY = r'''\\x41" + one + "'''", appsecret.Choice{}, recipe.Django, []string{"SECRET_KEY:2=\\x41" + one}},
		"settings.py, continued":   {appsecret.Python, "INSTALLED_APPS = 1\nSECRET_KEY = \\\n    '" + one[:9] + "' + \\\r\n    '" + one[9:] + "'", appsecret.Choice{}, recipe.Django, []string{"SECRET_KEY:2=" + one}},
		"settings.py, same old":    {appsecret.Python, "INSTALLED_APPS = 1\nSECRET_KEY = '" + one + "'\nSECRET_KEY_FALLBACKS = ['" + one + "']", appsecret.Choice{}, recipe.Django, []string{"SECRET_KEY_FALLBACKS:3=" + one}},
		"settings.py, by the line": {appsecret.Python, "INSTALLED_APPS = 1\nif DEBUG:\n  SECRET_KEY = '" + one + "'\nelse:\n  SECRET_KEY = '" + two + "'\n", appsecret.Choice{Line: 5}, recipe.Django, []string{"SECRET_KEY:5=" + two}},
		"flask, attribute":         {appsecret.Python, "from flask import Flask\napp = Flask('x')\napp.secret_key = b'" + one + "\\xff'\n", appsecret.Choice{}, recipe.Flask, []string{"SECRET_KEY:3=" + one + "\xff"}},
		"flask, item":              {appsecret.Python, "from flask import Flask\napp.config[\"SECRET_KEY\"] = '" + one + "'\n", appsecret.Choice{}, recipe.Flask, []string{"SECRET_KEY:2=" + one}},
		"flask, argument":          {appsecret.Python, "from flask import Flask\ndef create_app():\n    app.config.from_mapping(\n        DEBUG=True, SECRET_KEY='" + one + "',\n        X='y')\n", appsecret.Choice{}, recipe.Flask, []string{"SECRET_KEY:4=" + one}},
		"flask, class":             {appsecret.Python, "class Config:\n    \"\"\"For Flask's\n    SECRET_KEY = 'x'\"\"\"\n    SECRET_KEY = '" + one + "'\n", appsecret.Choice{}, recipe.Flask, []string{"SECRET_KEY:4=" + one}},
		"properties":               {appsecret.Properties, "# jwt.secret=x\nserver.port=1\napp.jwt.secret : mk-test\\\n   -secret-0001\\u002dnot-a-real-secret-0001\n", appsecret.Choice{}, recipe.JWT, []string{"app.jwt.secret:3=" + one}},
		"properties, base64":       {appsecret.Properties, "jwt.secret=" + base64.StdEncoding.EncodeToString([]byte(one)), appsecret.Choice{Encoding: "base64"}, recipe.JWT, []string{"jwt.secret:1=" + one}},
		"yaml":                     {appsecret.YAML, "app:\n  jwt:\n    secret: '" + one + "'\n    ttl: 60\n", appsecret.Choice{}, recipe.JWT, []string{"app.jwt.secret:3=" + one}},
		"secrets.yml":              {appsecret.YAML, "development:\n  secret_key_base: " + two + "\nproduction:\n  secret_key_base: " + one + "\n", appsecret.Choice{}, recipe.Rails, []string{"production.secret_key_base:4=" + one}},
	} {
		f, err := appsecret.Read(test.kind, appsecret.Source{Data: []byte(test.data)}, test.want)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(test.out, found(f)); diff != "" || f.Set != test.set {
			t.Errorf("%s: for %s (-want +got):\n%s", name, f.Set, diff)
		}
		quiet(t, name, f)
	}
}

// quiet checks that what is shown of a place has no secret in it.
func quiet(t *testing.T, name string, f *appsecret.Found) {
	t.Helper()
	text := fmt.Sprintf("%v %+v %#v", f, *f, f.Secrets) + strings.Join(f.Notes, "\n") + f.Change("place", "prod/app/key")
	encoded, err := json.Marshal(f.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	text += string(encoded)
	for _, s := range f.Secrets {
		text += fmt.Sprintf("%s %x %q %v %d", s.Material, s.Material, s.Material, s, s.Material)
	}
	for _, s := range []string{"not-a-real", "0123456789abcdef", "mk-test", dec[:16], val[:16], "DB_PASSWORD"} {
		if strings.Contains(text, s) || strings.Contains(text, hex.EncodeToString([]byte(s))) {
			t.Errorf("%s: %q is shown: %s", name, s, text)
		}
	}
	if !strings.Contains(text, "<removed>") {
		t.Errorf("%s: nothing is shown: %s", name, text)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	keys := `decryptionKey="` + dec + `" validationKey="` + val + `"`
	for name, test := range map[string]struct {
		kind appsecret.Kind
		data string
		want appsecret.Choice
		says string // in the error or its hint
	}{
		"auto":               {appsecret.WebConfig, webConfig(`validationKey="AutoGenerate,IsolateApps" decryptionKey="AutoGenerate,IsolateApps"`, ""), appsecret.Choice{}, "registry"},
		"no keys":            {appsecret.WebConfig, webConfig(`validation="SHA1"`, ""), appsecret.Choice{}, "AutoGenerate"},
		"isolated":           {appsecret.WebConfig, webConfig(`decryptionKey="`+dec+`,IsolateApps" validationKey="`+val+`"`, ""), appsecret.Choice{}, "IsolateApps"},
		"by app id":          {appsecret.WebConfig, webConfig(`decryptionKey="`+dec+`,IsolateByAppId" validationKey="`+val+`"`, ""), appsecret.Choice{}, "IsolateByAppId"},
		"elsewhere":          {appsecret.WebConfig, webConfig(`configSource="keys.config"`, ""), appsecret.Choice{}, "keys.config"},
		"encrypted":          {appsecret.WebConfig, webConfig(`configProtectionProvider="RsaProtectedConfigurationProvider"`, ""), appsecret.Choice{}, "aspnet_regiis"},
		"several":            {appsecret.WebConfig, webConfig(keys, "<machineKey "+keys+"/>"), appsecret.Choice{}, "line 4, line 5"},
		"none":               {appsecret.WebConfig, "<configuration/>", appsecret.Choice{}, "machine.config"},
		"not hex":            {appsecret.WebConfig, webConfig(`decryptionKey="mk-test" validationKey="`+val+`"`, ""), appsecret.Choice{}, "not hex"},
		"short":              {appsecret.WebConfig, webConfig(`decryptionKey="3031" validationKey="`+val+`"`, ""), appsecret.Choice{}, "size"},
		"an entity":          {appsecret.WebConfig, `<!DOCTYPE x [<!ENTITY a "` + dec + `">]>` + webConfig(`decryptionKey="&a;" validationKey="`+val+`"`, ""), appsecret.Choice{}, "well-formed"},
		"not ended":          {appsecret.WebConfig, "<configuration><system.web>", appsecret.Choice{}, "well-formed"},
		"crossed":            {appsecret.WebConfig, "<a><b></a></b>", appsecret.Choice{}, "well-formed"},
		"half a unit":        {appsecret.WebConfig, wide(webConfig(keys, ""), binary.LittleEndian, true) + "x", appsecret.Choice{}, "UTF-16LE"},
		"a lone surrogate":   {appsecret.WebConfig, "\xff\xfe" + "<\x00" + "\x00\xd8" + "a\x00", appsecret.Choice{}, "see byte 2"},
		"a reversed pair":    {appsecret.WebConfig, "\xfe\xff" + "\xdc\x00\xd8\x00", appsecret.Choice{}, "see byte 0"},
		"not UTF-8":          {appsecret.Dotenv, "APP_KEY=\xff\xfe\xfd", appsecret.Choice{}, "not UTF-8"},
		"a zero":             {appsecret.Dotenv, "APP_SECRET=ab\x00cd", appsecret.Choice{}, "not UTF-8"},
		"a number sign":      {appsecret.Dotenv, "APP_SECRET=mk-test#1", appsecret.Choice{}, "number sign"},
		"a variable":         {appsecret.Dotenv, "APP_SECRET=${OTHER}mk-test", appsecret.Choice{}, "another variable"},
		"a variable, quoted": {appsecret.Dotenv, `APP_SECRET="mk-test$OTHER"`, appsecret.Choice{}, "another variable"},
		"a backslash":        {appsecret.Dotenv, `APP_SECRET="mk-test\\n"`, appsecret.Choice{}, "backslash"},
		"an open quote":      {appsecret.Dotenv, "APP_SECRET=\"mk-test\n\n", appsecret.Choice{}, "does not end"},
		"after the quotes":   {appsecret.Dotenv, "APP_SECRET=\"mk-test\"more", appsecret.Choice{}, "after its quotes"},
		"empty":              {appsecret.Dotenv, "APP_KEY=\n", appsecret.Choice{}, "empty"},
		"of a wrong size":    {appsecret.Dotenv, "APP_KEY=base64:bWstdGVzdA==\n", appsecret.Choice{}, "no secret of laravel"},
		"twice":              {appsecret.Dotenv, "APP_SECRET=mk-test\n\nAPP_SECRET=mk-test", appsecret.Choice{}, "line 1, APP_SECRET in line 3"},
		"of two frameworks":  {appsecret.Dotenv, "APP_SECRET=mk-test\nJWT_SECRET=mk-test", appsecret.Choice{}, "--name"},
		"of which framework": {appsecret.Dotenv, "SECRET_KEY=mk-test", appsecret.Choice{}, "django, flask, itsdangerous"},
		"nothing known":      {appsecret.Dotenv, "TOKEN=mk-test", appsecret.Choice{}, "--name"},
		"for what":           {appsecret.Dotenv, "TOKEN=mk-test", appsecret.Choice{Name: "TOKEN"}, "--set"},
		"no such name":       {appsecret.Dotenv, "TOKEN=mk-test", appsecret.Choice{Name: "OTHER", Set: recipe.JWT}, "no secret"},
		"environ":            {appsecret.Python, "import django, os\nSECRET_KEY = os.environ['mk-test']\n", appsecret.Choice{}, "environment"},
		"a default":          {appsecret.Python, "import django, os\nSECRET_KEY = os.getenv('A', 'mk-test')\n", appsecret.Choice{}, "environment"},
		"a call":             {appsecret.Python, "import django\nSECRET_KEY = open('mk-test').read()\n", appsecret.Choice{}, "nothing is run"},
		"formatted":          {appsecret.Python, "import django\nSECRET_KEY = f'mk-test{x}'\n", appsecret.Choice{}, "nothing is run"},
		"by name":            {appsecret.Python, "import django\nSECRET_KEY = 'mk-test\\N{BULLET}'\n", appsecret.Choice{}, "nothing is run"},
		"added to":           {appsecret.Python, "import django\nSECRET_KEY += 'mk-test'\n", appsecret.Choice{}, "several values"},
		"under a condition":  {appsecret.Python, "import django\nif x:\n    SECRET_KEY = 'mk-test'\n", appsecret.Choice{}, "--line 3"},
		"in one line":        {appsecret.Python, "import django\nif x: SECRET_KEY = 'mk-test'\n", appsecret.Choice{}, "--line 2"},
		"a list":             {appsecret.Python, "import django\nSECRET_KEY = ['mk-test', 'mk-test2']\n", appsecret.Choice{}, "is a list"},
		"two in Python":      {appsecret.Python, "import django\nSECRET_KEY = 'mk-test'\nSECRET_KEY = 'mk-test'\n", appsecret.Choice{}, "line 2, SECRET_KEY in line 3"},
		"an old one is not":  {appsecret.Python, "import django\nSECRET_KEY = 'mk-test'\nSECRET_KEY_FALLBACKS = [os.environ['X']]\n", appsecret.Choice{}, "SECRET_KEY_FALLBACKS in line 3"},
		"a string open":      {appsecret.Python, "import django\nSECRET_KEY = 'mk-test\n", appsecret.Choice{}, "nothing is run"},
		"a placeholder":      {appsecret.Properties, "jwt.secret=${JWT}", appsecret.Choice{}, "elsewhere"},
		"erb":                {appsecret.YAML, "production:\n  secret_key_base: <%= ENV['mk-test'] %>\n", appsecret.Choice{}, "elsewhere"},
		"symfony's":          {appsecret.YAML, "framework:\n  secret: '%env(APP_SECRET)%'\n", appsecret.Choice{}, "elsewhere"},
		"an alias":           {appsecret.YAML, "x: &x mk-test\njwt:\n  secret: *x\n", appsecret.Choice{}, "another value"},
		"a number":           {appsecret.YAML, "jwt:\n  secret: 12345\n", appsecret.Choice{}, "no text"},
		"not yaml":           {appsecret.YAML, "a: 'mk-test\nb: [", appsecret.Choice{}, "no YAML"},
		"no credentials":     {appsecret.Credentials, "mk-test", appsecret.Choice{}, "32 hexadecimal"},
		"no such kind":       {"ini", "mk-test", appsecret.Choice{}, "web.config"},
		"a ring for django":  {appsecret.KeyRing, "", appsecret.Choice{Set: recipe.Django}, "dataprotection"},
		"an empty ring":      {appsecret.KeyRing, "", appsecret.Choice{}, "key-*.xml"},
	} {
		refused(t, name, test.kind, test.data, test.want, test.says)
	}
}

// refused checks that a place is refused with a hint, and what is said of it.
func refused(t *testing.T, name string, kind appsecret.Kind, data string, want appsecret.Choice, says string) {
	t.Helper()
	_, err := appsecret.Read(kind, appsecret.Source{Data: []byte(data)}, want)
	problem, ok := errors.AsType[*claviger.Error](err)
	if !ok {
		t.Errorf("%s: %v, want an error with a hint", name, err)
		return
	}
	text := problem.Msg + " / " + problem.Hint
	if !strings.Contains(text, says) || problem.Hint == "" {
		t.Errorf("%s: %s, want %q", name, text, says)
	}
	for _, s := range []string{"mk-test", dec, val} {
		if strings.Contains(text, s) {
			t.Errorf("%s: the error has the secret: %s", name, text)
		}
	}
}

// sealCredentials encrypts as Rails does.
func sealCredentials(t testing.TB, masterKey string, plain []byte) []byte {
	t.Helper()
	key, err := hex.DecodeString(masterKey)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("a nonce of 1")
	sealed := aead.Seal(nil, nonce, plain, nil)
	b := base64.StdEncoding.EncodeToString
	return []byte(b(sealed[:len(plain)]) + "--" + b(nonce) + "--" + b(sealed[len(plain):]))
}

// marshal is Marshal.dump of a String in UTF-8.
func marshal(text string) []byte {
	n := len(text)
	size := []byte{byte(n + 5)}
	switch {
	case n > 0xff:
		size = []byte{2, byte(n), byte(n >> 8)}
	case n > 122:
		size = []byte{1, byte(n)}
	}
	return []byte("\x04\x08I\"" + string(size) + text + "\x06:\x06ET")
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	const master = "00112233445566778899aabbccddeeff"
	for _, more := range []string{"", "aws:\n  key: x\n", strings.Repeat("# a comment\n", 40)} {
		plain := marshal(more + "secret_key_base: " + one + "\n")
		f, err := appsecret.Read(appsecret.Credentials, appsecret.Source{Data: sealCredentials(t, master, plain), Key: []byte(master + "\n")}, appsecret.Choice{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"secret_key_base:0=" + one}, found(f)); diff != "" || f.Set != recipe.Rails {
			t.Errorf("for %s (-want +got):\n%s", f.Set, diff)
		}
		quiet(t, "credentials", f)
	}
	sealed := sealCredentials(t, master, marshal("secret_key_base: "+one))
	for name, key := range map[string]string{"another key": strings.Repeat("0", 32), "half a key": master[:16], "no key": ""} {
		if _, err := appsecret.Read(appsecret.Credentials, appsecret.Source{Data: sealed, Key: []byte(key)}, appsecret.Choice{}); err == nil || strings.Contains(err.Error(), one) {
			t.Errorf("%s: %v", name, err)
		}
	}
	sealed[3] ^= 1
	if _, err := appsecret.Read(appsecret.Credentials, appsecret.Source{Data: sealed, Key: []byte(master)}, appsecret.Choice{}); err == nil {
		t.Error("a changed ciphertext is taken")
	}
	for name, plain := range map[string]string{"an object": "\x04\x08o:\x08Foo\x00", "a size too large": "\x04\x08I\"\x04\xff\xff\xff\x7fa", "nothing": ""} {
		if _, err := appsecret.Read(appsecret.Credentials, appsecret.Source{Data: sealCredentials(t, master, []byte(plain)), Key: []byte(master)}, appsecret.Choice{}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// ringFile is a key of a ring that is active from one day to another.
func ringFile(id byte, from, to int, descriptor string) appsecret.File {
	guid := fmt.Sprintf("%02x000000-0000-0000-0000-0000000000%02x", id, id)
	day := func(n int) string { return now.AddDate(0, 0, n).Format("2006-01-02T15:04:05.9999999Z") }
	if descriptor == "" {
		descriptor = `<descriptor><encryption algorithm="AES_256_CBC" /><validation algorithm="HMACSHA256" /><masterKey p4:requiresEncryption="true" xmlns:p4="http://schemas.asp.net/2015/03/dataProtection">` +
			"\n<!-- Warning: the key below is in an unencrypted form. --><value>" + base64.StdEncoding.EncodeToString([]byte(fmt.Sprintf("master-%d-%s", id, one))) + "</value></masterKey></descriptor>"
	}
	return appsecret.File{Name: "key-" + guid + ".xml", Data: []byte(`<?xml version="1.0" encoding="utf-8"?><key id="` + guid + `" version="1"><creationDate>` + day(from) + "</creationDate><activationDate>" + day(from) +
		"</activationDate><expirationDate>" + day(to) + "</expirationDate><descriptor deserializerType=\"x\">" + descriptor + "</descriptor></key>")}
}

func TestKeyRing(t *testing.T) {
	t.Parallel()
	revoked := appsecret.File{Name: "revocation-1.xml", Data: []byte(`<revocation version="1"><revocationDate>2026-01-01T00:00:00Z</revocationDate><key id="03000000-0000-0000-0000-000000000003" /><reason /></revocation>`)}
	everything := appsecret.File{Name: "revocation-all.xml", Data: []byte(`<revocation version="1"><revocationDate>` + now.AddDate(0, 0, -100).Format(time.RFC3339) + `</revocationDate><key id="*" /></revocation>`)}
	read := func(files ...appsecret.File) (ids []byte, err error) {
		f, err := appsecret.Read(appsecret.KeyRing, appsecret.Source{Ring: files, Now: now}, appsecret.Choice{})
		if err != nil {
			return nil, err
		}
		quiet(t, "ring", f)
		for _, s := range f.Secrets {
			id := s.Material[3] // a GUID has its first group little-endian
			if want := fmt.Sprintf("master-%d-%s", id, one); string(s.Material[16:]) != want {
				t.Errorf("entry %d has another master key", id)
			}
			ids = append(ids, id)
		}
		return ids, nil
	}
	for name, test := range map[string]struct {
		files []appsecret.File
		want  []byte // the ids, the oldest first
	}{
		"one":            {[]appsecret.File{ringFile(1, -10, 80, "")}, []byte{1}},
		"rotated":        {[]appsecret.File{ringFile(2, -10, 80, ""), ringFile(1, -100, -10, ""), {Name: "notes.txt", Data: []byte("\xff")}}, []byte{1, 2}},
		"one to come":    {[]appsecret.File{ringFile(1, -10, 10, ""), ringFile(2, 8, 98, "")}, []byte{2, 1}},
		"all expired":    {[]appsecret.File{ringFile(1, -200, -110, ""), ringFile(2, -100, -10, "")}, []byte{1, 2}},
		"one revoked":    {[]appsecret.File{ringFile(1, -10, 80, ""), ringFile(3, -5, 85, ""), revoked}, []byte{1}},
		"all of before":  {[]appsecret.File{ringFile(1, -110, -20, ""), ringFile(2, -50, 40, ""), everything}, []byte{2}},
		"within minutes": {[]appsecret.File{ringFile(1, -10, 80, ""), ringFile(2, 0, 90, "")}, []byte{1, 2}},
	} {
		ids, err := read(test.files...)
		if diff := cmp.Diff(test.want, ids); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for name, descriptor := range map[string]string{
		"DPAPI":       `<encryptedSecret decryptorType="Microsoft.AspNetCore.DataProtection.XmlEncryption.DpapiXmlDecryptor, X"><encryptedKey><value>AQAA</value></encryptedKey></encryptedSecret>`,
		"certificate": `<descriptor><encryption algorithm="AES_256_CBC" /><encryptedSecret decryptorType="Microsoft.AspNetCore.DataProtection.XmlEncryption.EncryptedXmlDecryptor, X"><EncryptedData /></encryptedSecret></descriptor>`,
		"master key":  `<descriptor><masterKey><value>!</value></masterKey></descriptor>`,
	} {
		if _, err := read(ringFile(1, -10, 80, ""), ringFile(2, -5, 85, descriptor)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := read(ringFile(3, -5, 85, ""), revoked); claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("a ring whose keys are revoked: %v", err)
	}
}

func TestGuess(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]appsecret.Kind{
		"/srv/app/.env": appsecret.Dotenv, ".env.production": appsecret.Dotenv, "prod.env": appsecret.Dotenv, "Web.config": appsecret.WebConfig,
		"settings.py": appsecret.Python, "config/credentials.yml.enc": appsecret.Credentials, "config/secrets.yml": appsecret.YAML,
		"application.properties": appsecret.Properties, "application.yaml": appsecret.YAML, "secret": "", "key.pem": "",
	} {
		if got, _ := appsecret.Guess(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
