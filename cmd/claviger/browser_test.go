package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev/internal/hunt"
)

// browserPage makes keys that no script can export, keeps them in IndexedDB, and
// posts their public halves, and what the attempt to export one gave.
const browserPage = `<!doctype html><title>keys</title><script>
const b64 = b => btoa(String.fromCharCode(...new Uint8Array(b)));
(async () => {
  const db = await new Promise((ok, no) => {
    const r = indexedDB.open('keys', 1);
    r.onupgradeneeded = () => r.result.createObjectStore('keys');
    r.onsuccess = () => ok(r.result); r.onerror = () => no(r.error);
  });
  const said = {};
  const ecdsa = {name: 'ECDSA', namedCurve: 'P-256'};
  for (const [name, alg] of [['ecdsa', ecdsa], ['second', ecdsa], ['third', ecdsa], ['ed25519', {name: 'Ed25519'}]]) {
    const pair = await crypto.subtle.generateKey(alg, false, ['sign', 'verify']);
    await new Promise((ok, no) => {
      const t = db.transaction('keys', 'readwrite', {durability: 'strict'});
      t.objectStore('keys').put(pair.privateKey, name);
      t.oncomplete = ok; t.onerror = () => no(t.error);
    });
    said[name] = b64(await crypto.subtle.exportKey('spki', pair.publicKey));
    said['export ' + name] = await crypto.subtle.exportKey('pkcs8', pair.privateKey).then(() => 'exported', e => e.name);
  }
  // So much that the database writes tables, whose blocks it compresses.
  for (let i = 0; i < 8; i++) {
    await new Promise((ok, no) => {
      const t = db.transaction('keys', 'readwrite', {durability: 'strict'});
      for (let j = 0; j < 20; j++) t.objectStore('keys').put('other '.repeat(8000), 'text ' + i + ' ' + j);
      t.oncomplete = ok; t.onerror = () => no(t.error);
    });
  }
  db.close();
  await fetch('/keys', {method: 'POST', body: JSON.stringify(said)});
})().catch(e => fetch('/keys', {method: 'POST', body: JSON.stringify({error: String(e)})}));
</script>`

// browse has Chromium open a page that makes keys, in a profile of its own, and
// returns what the page said, once the browser has ended.
func browse(t *testing.T, profile string) map[string]string {
	t.Helper()
	said := make(chan map[string]string, 1)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			var keys map[string]string
			body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
			if err == nil {
				err = json.Unmarshal(body, &keys)
			}
			if err != nil {
				keys = map[string]string{"error": err.Error()}
			}
			select {
			case said <- keys:
			default:
			}
		case r.URL.Path == "/":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, browserPage)
		default:
			http.NotFound(w, r)
		}
	}))
	defer site.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir="+profile, site.URL)
	var talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &talk, &talk
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var keys map[string]string
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case keys = <-said:
	case err := <-ended:
		t.Fatalf("the browser ended: %v\n%s", err, talk.String())
	case <-ctx.Done():
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	if keys != nil {
		<-ended
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of it
	if keys == nil || keys["error"] != "" {
		t.Fatalf("the page said %v\n%s", keys, talk.String())
	}
	return keys
}

// TestBrowserProfile: keys that a real browser calls non-extractable lie in its
// profile, where the hunter finds them knowing only their public halves.
func TestBrowserProfile(t *testing.T) {
	t.Parallel()
	profile := t.TempDir()
	keys := browse(t, profile)
	for _, name := range []string{"ecdsa", "second", "third", "ed25519"} {
		if keys["export "+name] != "InvalidAccessError" {
			t.Errorf("a script that exports the %s key met %q", name, keys["export "+name])
		}
		der, err := base64.StdEncoding.DecodeString(keys[name])
		if err != nil {
			t.Fatal(err)
		}
		public := filepath.Join(t.TempDir(), name+".pem")
		if err := os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, talk bytes.Buffer
		exit := run(t.Context(), []string{"evidence", "hunt", "--format", "json", "--public", public, filepath.Join(profile, "Default", "IndexedDB")}, nil, &out, &talk)
		var r hunt.Report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || exit != 2 || r.Verdict != hunt.Found {
			t.Errorf("%s: exit %d, %v, %+v\n%s", name, exit, err, r, talk.String())
		}
		run(t.Context(), []string{"evidence", "hunt", "--public", public, filepath.Join(profile, "Default", "IndexedDB")}, nil, &out, &talk)
		if !strings.Contains(talk.String(), "script-resistant") {
			t.Errorf("%s: the hunt does not say what the profile is worth: %s", name, talk.String())
		}
	}
}
