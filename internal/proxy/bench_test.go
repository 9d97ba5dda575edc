package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// BenchmarkPassed shows what a request of no rule costs behind the proxy and
// without it, both in processor time of the caller, the proxy and the
// application together, with the times that threads gave way.
func BenchmarkPassed(b *testing.B) {
	r := newRig(b, newVault(recipe.CookieSignature, strings.Repeat("old-", 12)), rule("sid", state.ExpressCookie, ""), func(r *rig) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("x", 2000))
		})
	})
	for name, base := range map[string]string{"behind": r.base, "direct": r.upstream} {
		b.Run(name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
			defer client.CloseIdleConnections()
			ask := func() {
				req, err := http.NewRequest(http.MethodGet, base+"/", nil)
				check(b, err)
				req.Header.Set("Cookie", "theme=dark")
				req.Header.Set("Accept", "text/html,application/xhtml+xml")
				req.Header.Set("Accept-Language", "de,en;q=0.5")
				req.Header.Set("User-Agent", "Mozilla/5.0")
				resp, err := client.Do(req)
				check(b, err)
				_, err = io.Copy(io.Discard, resp.Body)
				check(b, err)
				resp.Body.Close()
			}
			ask()
			var before, after syscall.Rusage
			check(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
			for b.Loop() {
				ask()
			}
			check(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
			spent := time.Duration(after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano())
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(after.Nvcsw-before.Nvcsw)/float64(b.N), "gave-way/op")
		})
	}
}
