package proxy

import (
	"net/http/httputil"
	"net/netip"
	"slices"
	"strings"
)

// rewrite addresses the request to the application. What proxies say of a
// caller is told by this one and by those that are trusted, never by strangers.
func (x *exchange) rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.Scheme, pr.Out.URL.Host = "http", "application"
	pr.Out.Host = pr.In.Host
	pr.Out.Trailer = pr.In.Trailer // filled in when the body has been read
	trusted := x.trusts(pr.In.RemoteAddr)
	for name := range pr.Out.Header {
		// Applications that are given headers as variables cannot tell "_" from "-".
		plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		if vouches(plain) && (!trusted || strings.Contains(name, "_")) {
			delete(pr.Out.Header, name)
		}
	}
	if trusted {
		pr.Out.Header["X-Forwarded-For"] = pr.In.Header["X-Forwarded-For"]
	}
	pr.SetXForwarded()
	for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v := pr.In.Header[name]; trusted && len(v) > 0 {
			pr.Out.Header[name] = v
		}
	}
}

// vouches reports whether a header, in lower case, is one by which a proxy or a
// web server tells an application who calls, from where, by what address or
// with which certificate.
func vouches(name string) bool {
	switch name {
	case "forwarded", "true-client-ip", "cf-connecting-ip", "fastly-client-ip", "x-client-ip", "x-cluster-client-ip", "x-remote-ip", "x-remote-addr",
		"remote-addr", "remote-user", "x-remote-user", "x-client-dn", "x-client-verify", "front-end-https", "x-rewrite-url",
		"x-original-url", "x-original-uri", "x-original-host", "x-original-for", "x-original-proto":
		return true
	}
	return slices.ContainsFunc([]string{"x-forwarded-", "x-real-", "client-cert", "x-client-cert", "ssl-client", "x-ssl-", "x-arr-"},
		func(head string) bool { return strings.HasPrefix(name, head) })
}

func (p *Proxy) trusts(remote string) bool {
	at, err := netip.ParseAddrPort(remote)
	return err == nil && slices.ContainsFunc(p.cfg.Trust, func(t netip.Prefix) bool { return t.Contains(at.Addr().Unmap()) })
}
