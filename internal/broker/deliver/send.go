package deliver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"

	"claviger.dev"
)

// The limits of one try.
const (
	sendTimeout = 10 * time.Second // from the connection to the end of the answer
	maxAnswer   = 4 << 10          // bytes of an answer that are read
	maxURL      = 2 << 10          // bytes
)

// refusal is an answer of a receiver that is there and does not want the token.
type refusal struct {
	status int
	code   string // of the receiver's own error, where it is a plain word; or ""
}

func (r refusal) Error() string {
	text := fmt.Sprintf("the receiver answered %d", r.status)
	if r.code != "" {
		text += " " + r.code
	}
	return text
}

// CheckURL says what is wrong with the address of a receiver, "" for nothing.
// Loopback lets http and https to this host pass, for tests.
func CheckURL(address string, loopback bool) string {
	u, err := url.Parse(address)
	if err != nil || len(address) > maxURL || u.Host == "" || u.Opaque != "" {
		return "the address is no URL of at most 2048 bytes"
	}
	if u.User != nil || u.Fragment != "" {
		return "the address has a user or a fragment"
	}
	local := isLoopback(u.Hostname())
	switch {
	case local && !loopback:
		return "the address is this host itself"
	case u.Scheme != "https" && (u.Scheme != "http" || !local):
		return "the address is not https"
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && !local && !mayDial(ip, loopback) {
		return "nothing is sent to this address"
	}
	return ""
}

func isLoopback(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost")
}

// mayDial keeps a receiver's name from leading to where no receiver is: this
// host, and the link's own addresses, where clouds answer with credentials.
// Private networks are where applications are.
func mayDial(ip netip.Addr, loopback bool) bool {
	ip = ip.Unmap()
	if ip.IsLoopback() {
		return loopback
	}
	metadata := netip.MustParseAddr("fd00:ec2::254")
	return ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast() && ip != metadata && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// newClient returns what sends to one receiver: to where it is told and nowhere
// else, with the address checked after its name was looked up.
func newClient(roots *x509.CertPool, loopback bool) *http.Client {
	dialer := &net.Dialer{Timeout: sendTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("read address: %w", err)
		}
		if !mayDial(to.Addr(), loopback) {
			return errors.New("the receiver's name leads to an address that nothing is sent to")
		}
		return nil
	}}
	return &http.Client{
		Timeout: sendTimeout,
		// No proxy of the environment: it would look the name up itself.
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true, MaxIdleConnsPerHost: parallel, IdleConnTimeout: 30 * time.Second,
			MaxResponseHeaderBytes: 16 << 10, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// send hands a signed token over. A refusal is a refusal{}; every other error
// means that nothing is known of what the receiver did.
func send(ctx context.Context, client *http.Client, kind claviger.ReceiverKind, address, jwt string) error {
	body, contentType := jwt, "application/secevent+jwt"
	if kind == claviger.LogoutReceiver {
		body, contentType = url.Values{"logout_token": {jwt}}.Encode(), "application/x-www-form-urlencoded"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "claviger")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 == 2 {
		return nil // what it says beside that is of no concern, nor whether it ended
	}
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return refusal{resp.StatusCode, errorCode(answer)}
}

// errorCode returns the error that a receiver names (RFC 8935, 2.3; RFC 6749,
// 5.2), where it is a word that can be shown to anyone.
func errorCode(answer []byte) string {
	var told struct {
		Err   string `json:"err"`
		Error string `json:"error"`
	}
	if json.Unmarshal(answer, &told) != nil {
		return ""
	}
	for _, code := range []string{told.Err, told.Error} {
		if regexp.MustCompile(`^[a-zA-Z_]{1,40}$`).MatchString(code) {
			return code
		}
	}
	return ""
}
