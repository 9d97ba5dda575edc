package sdk_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkProxy shows what the proxy adds to a request: of each kind one after
// the other in turns with the same request to the application itself, in one
// run. The figures are medians in microseconds; "added" is the difference.
//
//	passed   a request without a cookie of a rule
//	checked  one signed cookie, checked by custody
//	made     one cookie set, made by custody, which waits until it is recorded
func BenchmarkProxy(b *testing.B) {
	c, secret := newCustody(b), newSecret()
	c.adopt("dev/shop/express", "cookie-signature", secret)
	port := freePort(b)
	dir := openDir(b)
	check(b, os.Chown(dir, application, application))
	file := filepath.Join(dir, "local")
	config := "[[cookie]]\nname = 'connect.sid'\nformat = 'express.cookie'\nkey = 'dev/shop/express'\n[[file]]\nname = 'secret'\ntext = '{{secret \"dev/shop/express\"}}'\n"
	var local string // a cookie by the application's own secret
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	check(b, err)
	app := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/made" {
			w.Header().Set("Set-Cookie", "connect.sid="+local+"; Path=/; HttpOnly")
		}
		_, _ = io.WriteString(w, strings.Repeat("x", 2000))
	})}
	go func() { _ = app.Serve(l) }()
	b.Cleanup(func() { app.Close() })
	p, _ := behindPort(b, c, port, config, "/bin/sh", "-c", fmt.Sprintf("cp $CLAVIGER_PROXY_DIR/secret %s; echo $PORT; exec sleep 600", file))
	own, err := os.ReadFile(file)
	check(b, err)
	local = expressCookie(string(own))
	requests := []struct{ name, path, cookie string }{{"passed", "/", "theme=dark"}, {"checked", "/", "theme=dark; connect.sid=" + expressCookie(secret)}, {"made", "/made", "theme=dark"}}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2}, Timeout: 20 * time.Second}
	took := func(base, path, cookie string) float64 {
		req, err := http.NewRequest(http.MethodGet, base+path, nil)
		check(b, err)
		req.Header.Set("Cookie", cookie)
		began := time.Now()
		resp, err := client.Do(req)
		check(b, err)
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if check(b, err); resp.StatusCode != http.StatusOK {
			b.Fatalf("%s: %d\n%s", path, resp.StatusCode, p.log)
		}
		return float64(time.Since(began).Nanoseconds()) / 1e3
	}
	direct := make([][]float64, len(requests))
	behind := make([][]float64, len(requests))
	for b.Loop() {
		for i, r := range requests {
			direct[i] = append(direct[i], took(fmt.Sprintf("http://127.0.0.1:%d", port), r.path, r.cookie))
			behind[i] = append(behind[i], took(p.base, r.path, r.cookie))
		}
	}
	for i, r := range requests {
		slices.Sort(direct[i])
		slices.Sort(behind[i])
		n := len(direct[i])
		b.ReportMetric(direct[i][n/2], r.name+"-direct-µs")
		b.ReportMetric(behind[i][n/2]-direct[i][n/2], r.name+"-added-µs")
		b.ReportMetric(behind[i][n*99/100]-direct[i][n*99/100], r.name+"-added-p99-µs")
	}
	b.ReportMetric(0, "ns/op")
}

// expressCookie signs as cookie-signature does.
func expressCookie(secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("session-id-of-a-visitor"))
	return url.PathEscape("s:session-id-of-a-visitor." + base64.RawStdEncoding.EncodeToString(mac.Sum(nil)))
}
