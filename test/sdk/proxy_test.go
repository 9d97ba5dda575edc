package sdk_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// behind starts an application behind the proxy. The configuration lacks the
// addresses. The process is the proxy's, whose log has the application's too;
// its URLs are the proxy's, and app is the application's number.
func behind(t testing.TB, c *custody, config string, command ...string) (p *process, app int) {
	t.Helper()
	return behindPort(t, c, freePort(t), config, command...)
}

// behindPort is behind, where the application's port is known.
func behindPort(t testing.TB, c *custody, port int, config string, command ...string) (p *process, app int) {
	t.Helper()
	public := freePort(t)
	file := filepath.Join(openDir(t), "proxy.toml")
	text := fmt.Sprintf("listen = '127.0.0.1:%d'\nupstream = 'http://127.0.0.1:%d'\n%s", public, port, config)
	check(t, os.WriteFile(file, []byte(text), 0o644))
	args := append([]string{"--address", "unix://" + c.socket, "agent", "proxy", "--config", file, "--"}, command...)
	p = launch(t, "", []string{fmt.Sprintf("PORT=%d", port)}, filepath.Join(bin, "claviger"), args...)
	if !p.log.says("msg=serving") {
		t.Fatalf("the proxy does not serve:\n%s", tail(p.log.String()))
	}
	p.base = fmt.Sprintf("http://127.0.0.1:%d", public)
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	check(t, err)
	for _, name := range names {
		text, err := os.ReadFile(name)
		check(t, err)
		if number, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			app = number
		}
	}
	if app == 0 {
		t.Fatal("the application is not found")
	}
	return p, app
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

const expressRules = `
[[cookie]]
name = "connect.sid"
format = "express.cookie"
key = "dev/shop/express"
renew = "Path=/; HttpOnly"
[[cookie]]
name = "pref"
format = "express.cookie"
key = "dev/shop/express"
renew = "Path=/; HttpOnly"
[[cookie]]
name = "json"
format = "express.cookie"
key = "dev/shop/express"
[[cookie]]
name = "cs"
format = "cookie-session"
key = "dev/shop/keygrip"
renew = "Path=/; HttpOnly"
[[file]]
name = "secrets"
text = """
{{secret "dev/shop/express"}}
{{secret "dev/shop/keygrip"}}
"""
`

// An application of Express that reads its secrets and knows nothing of custody:
// express-session, cookie-parser and cookie-session.
func TestProxyExpress(t *testing.T) {
	dir, data, c := stageForNode(t), openDir(t), newCustody(t)
	check(t, os.Chown(data, application, application))
	signed, keygrip := newSecret(), newSecret()
	c.adopt("dev/shop/express", "cookie-signature", signed)
	c.adopt("dev/shop/keygrip", "keygrip", keygrip)
	script := filepath.Join(dir, "express_app.mjs")
	local := launch(t, signed+"\n"+keygrip+"\n", nil, node(t), script, "local", "express", data)
	local.holds(signed, keygrip)
	proxy, app := behind(t, c, expressRules, "/bin/sh", "-c", fmt.Sprintf("exec %s %s local express %s < $CLAVIGER_PROXY_DIR/secrets", node(t), script, data))

	visit := func(v *visitor, p *process) {
		v.sees(p, "/es/login", "in")
		v.sees(p, "/cs/login", "in")
		v.sees(p, "/set", "set")
	}
	known := func(v *visitor, p *process) {
		t.Helper()
		for path, want := range map[string]string{"/es/me": "alice größe,3", "/cs/me": "alice größe,3", "/pref": "dark. größe 7"} {
			v.sees(p, path, want)
		}
	}
	old, fresh := newVisitor(t), newVisitor(t)
	visit(old, local)
	known(old, proxy)
	visit(fresh, proxy)
	known(fresh, proxy)
	known(fresh, local) // what custody makes is what the application made by itself
	local.kill()
	for _, name := range []string{"connect.sid", "pref", "json", "cs", "cs.sig"} {
		thief := newVisitor(t)
		for _, held := range []string{"connect.sid", "pref", "json", "cs", "cs.sig"} {
			thief.set(proxy, held, old.cookie(proxy, held))
		}
		thief.set(proxy, name, other(old.cookie(proxy, name)))
		path, want := map[string]string{"connect.sid": "/es/me", "cs": "/cs/me", "cs.sig": "/cs/me"}[name], "-"
		if path == "" {
			path, want = "/pref", map[string]string{"pref": "- 7", "json": "dark. größe -"}[name]
		}
		thief.sees(proxy, path, want)
	}
	transport(t, fresh, proxy)

	c.run("", "key", "rotate", "dev/shop/express")
	c.run("", "key", "rotate", "dev/shop/keygrip")
	held := old.cookie(proxy, "connect.sid")
	known(old, proxy)
	if old.cookie(proxy, "connect.sid") == held {
		t.Error("the session's cookie was not made again by the new version")
	}
	for _, key := range []string{"dev/shop/express", "dev/shop/keygrip"} {
		c.destroy(key)
	}
	old.sees(proxy, "/es/me", "alice größe,3")
	old.sees(proxy, "/cs/me", "alice größe,3")
	fresh.sees(proxy, "/es/me", "-") // it was away all the time

	c.outage(proxy, "the server cannot be reached", func() {
		for _, path := range []string{"/es/me", "/cs/me", "/es/login"} {
			if status, body := old.get(proxy, path); status != http.StatusServiceUnavailable || !strings.Contains(body, "still logged in") {
				t.Errorf("%s without custody: %d %q", path, status, body)
			}
		}
	})
	old.sees(proxy, "/es/me", "alice größe,3")
	old.sees(proxy, "/cs/me", "alice größe,3")
	proxy.apart(c.socket, signed, keygrip)
	apart(t, app, data, signed, keygrip)
}

// apart checks that none of the secrets is in the process of a number, with a
// control that is.
func apart(t *testing.T, pid int, control string, secrets ...string) {
	t.Helper()
	if found := searchProcess(t, pid, append(secrets, control)...); len(found) != 1 || found[0] != control {
		t.Errorf("the search finds %d of the secrets and the control", len(found))
	}
}

// transport shows what is no cookie: upgrades, streams and large answers.
func transport(t *testing.T, v *visitor, p *process) {
	t.Helper()
	if status, body := v.get(p, "/stream"); status != http.StatusOK || strings.Count(body, "line ") != 100 {
		t.Errorf("a stream: %d, %d bytes", status, len(body))
	}
	if status, body := v.get(p, "/large"); status != http.StatusOK || len(body) != 10<<20 {
		t.Errorf("a large answer: %d, %d bytes", status, len(body))
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.base, "http://"))
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	check(t, err)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	check(t, err)
	_, err = io.WriteString(conn, "hello")
	check(t, err)
	echo := make([]byte, 5)
	if _, err := io.ReadFull(in, echo); err != nil || resp.StatusCode != http.StatusSwitchingProtocols || string(echo) != "hello" {
		t.Errorf("an upgrade: %d %q %v", resp.StatusCode, echo, err)
	}
}

// A Flask application that reads its secret and knows nothing of custody.
func TestProxyFlask(t *testing.T) {
	dir, c, secret := stageFor(t, "python"), newCustody(t), newSecret()
	c.adopt("dev/shop/flask", "flask", secret)
	script := filepath.Join(dir, "apps", "flask_app.py")
	local := launch(t, secret+"\n", nil, python, script, "local")
	local.holds(secret)
	config := "[[cookie]]\nname = 'session'\nformat = 'flask.session'\nkey = 'dev/shop/flask'\nrenew = 'Path=/; HttpOnly'\n" +
		"[[file]]\nname = 'secret'\ntext = '{{secret \"dev/shop/flask\"}}'\n"
	proxy, app := behind(t, c, config, "/bin/sh", "-c", fmt.Sprintf("exec %s %s local < $CLAVIGER_PROXY_DIR/secret", python, script))
	old, fresh, thief := newVisitor(t), newVisitor(t), newVisitor(t)
	old.sees(local, "/login", "in")
	old.sees(proxy, "/me", "alice")
	fresh.sees(proxy, "/login", "in")
	fresh.sees(proxy, "/me", "alice")
	fresh.sees(local, "/me", "alice")
	local.kill()
	thief.set(proxy, "session", other(old.cookie(proxy, "session")))
	thief.sees(proxy, "/me", "-")

	c.run("", "key", "rotate", "dev/shop/flask")
	old.sees(proxy, "/me", "alice")
	c.destroy("dev/shop/flask")
	old.sees(proxy, "/me", "alice")
	fresh.sees(proxy, "/me", "-")
	c.outage(proxy, "the server cannot be reached", func() {
		if status, body := old.get(proxy, "/me"); status != http.StatusServiceUnavailable {
			t.Errorf("without custody: %d %q", status, body)
		}
	})
	old.sees(proxy, "/me", "alice")
	proxy.apart(c.socket, secret)
	apart(t, app, script, secret)
}
