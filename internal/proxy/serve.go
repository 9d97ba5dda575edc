package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"claviger.dev"
)

// Place is what an application is given before it starts.
type Place struct {
	Dir         string   // with its files
	Environment []string // as of a process
	Volatile    bool     // the directory is in memory
	made        bool     // and was made here
	names       []string
}

// Prepare writes the files of the application, for its uid alone. The secrets
// in them are worth something to whoever reaches the application past the
// proxy, until it ends.
func (p *Proxy) Prepare(uid, gid int) (_ *Place, err error) {
	place := &Place{Dir: p.cfg.Directory}
	if place.Dir == "" {
		parent := "/dev/shm"
		if _, err := os.Stat(parent); err != nil {
			parent = ""
		}
		if place.Dir, err = os.MkdirTemp(parent, "claviger-proxy-"); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
		place.made = true
	} else if err := os.Mkdir(place.Dir, 0o700); err == nil {
		place.made = true
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make directory: %w", err)
	} else if err := private(place.Dir, uid); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, place.Remove())
		}
	}()
	var at unix.Statfs_t
	if err := unix.Statfs(place.Dir, &at); err != nil {
		return nil, fmt.Errorf("look at %s: %w", place.Dir, err)
	}
	place.Volatile = int64(at.Type) == unix.TMPFS_MAGIC || int64(at.Type) == unix.RAMFS_MAGIC
	if place.made {
		if err := os.Lchown(place.Dir, uid, gid); err != nil {
			return nil, fmt.Errorf("give %s to the application: %w", place.Dir, err)
		}
	}
	for _, f := range p.cfg.Files {
		if f.Template != "" {
			text, err := readUpTo(f.Template, maxTemplate)
			if err != nil {
				return nil, fmt.Errorf("read template: %w", err)
			}
			f.Text = string(text)
		}
		text, err := p.own.render(f.Name, f.Text)
		if err != nil {
			return nil, err
		}
		if err := place.write(f.Name, text, uid, gid); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Name, err)
		}
	}
	for name, text := range p.cfg.Environment {
		value, err := p.own.render(name, text)
		if err != nil {
			return nil, err
		}
		place.Environment = append(place.Environment, name+"="+string(value))
	}
	return place, nil
}

// private refuses a directory in which others than root, the proxy and the
// application can put what the application would read.
func private(dir string, uid int) error {
	var at unix.Stat_t
	if err := unix.Lstat(dir, &at); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if at.Mode&unix.S_IFMT != unix.S_IFDIR || at.Mode&0o022 != 0 || !slices.Contains([]int{0, os.Geteuid(), uid}, int(at.Uid)) {
		return invalid("the directory "+dir+" is a link, or another account can write to it", "give one that belongs to root, the proxy or the application, with mode 0755 or less")
	}
	return nil
}

// write makes a file anew, and follows no link: the directory may be another's.
func (place *Place) write(name string, text []byte, uid, gid int) error {
	dir, err := os.OpenRoot(place.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	place.names = append(place.names, name)
	_, err = f.Write(text)
	return errors.Join(err, f.Chown(uid, gid), f.Close())
}

// Remove removes what Prepare made.
func (place *Place) Remove() error {
	if place.made {
		return os.RemoveAll(place.Dir)
	}
	var all error
	for _, name := range place.names {
		all = errors.Join(all, os.Remove(filepath.Join(place.Dir, name)))
	}
	return all
}

// Await waits until the application listens.
func (p *Proxy) Await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.cfg.Limits.Start))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := p.dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return claviger.Errorf(claviger.Unavailable, "the application does not listen at "+p.cfg.Upstream, "see what it wrote, and that upstream is its address").Wrap(err)
		case <-tick.C:
		}
	}
}

// Listen opens the public listener.
func (p *Proxy) Listen() (net.Listener, error) {
	l, err := net.Listen("tcp", p.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", p.cfg.Listen, err)
	}
	return l, nil
}

// Serve answers on the listener until the context ends, and lets the requests
// finish that have begun. It closes the listener.
func (p *Proxy) Serve(ctx context.Context, public net.Listener) error {
	servers, err := p.servers(public)
	if err != nil {
		return errors.Join(err, public.Close())
	}
	ended := make(chan error, len(servers))
	for _, s := range servers {
		go func() { ended <- s.run() }()
	}
	p.log.Info("serving", "address", public.Addr().String(), "upstream", p.cfg.Upstream)
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(p.cfg.Limits.Drain))
	defer cancel()
	for _, s := range servers {
		if late := s.http.Shutdown(drain); late != nil {
			p.log.Warn("requests were cut off", "error", late)
			_ = s.http.Close()
		}
	}
	p.upstream.close()
	p.upstream.others.CloseIdleConnections()
	return err
}

type server struct {
	http *http.Server
	run  func() error
}

func (p *Proxy) servers(public net.Listener) ([]server, error) {
	limits := p.cfg.Limits
	public = netutil.LimitListener(public, limits.Connections)
	main := p.server(p)
	main.MaxHeaderBytes = limits.Header
	main.Protocols = new(http.Protocols)
	main.Protocols.SetHTTP1(true)
	main.Protocols.SetHTTP2(true)
	main.Protocols.SetUnencryptedHTTP2(true)
	main.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: time.Minute, PingTimeout: 15 * time.Second}
	all := []server{{main, func() error { return main.Serve(public) }}}
	if p.cfg.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(p.cfg.Certificate, p.cfg.CertificateKey)
		if err != nil {
			return nil, fmt.Errorf("load certificate: %w", err)
		}
		main.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
		all[0].run = func() error { return main.ServeTLS(public, "", "") }
	}
	if p.cfg.Admin != "" {
		l, err := net.Listen("tcp", p.cfg.Admin)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", p.cfg.Admin, err)
		}
		admin := p.server(p.Admin())
		admin.WriteTimeout = 15 * time.Second
		all = append(all, server{admin, func() error { return admin.Serve(netutil.LimitListener(l, 64)) }})
	}
	return all, nil
}

func (p *Proxy) server(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler, ReadHeaderTimeout: time.Duration(p.cfg.Limits.HeaderTimeout), IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)} // handshakes of strangers
}

// Admin answers /livez, /readyz ("a page can be served now") and /metrics.
func (p *Proxy) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Duration(p.cfg.Timeout))
		defer cancel()
		if err := p.ready(ctx); err != nil {
			http.Error(w, "custody: "+string(claviger.CodeOf(err)), http.StatusServiceUnavailable)
			return
		}
		conn, err := p.dial(ctx)
		if err != nil {
			http.Error(w, "the application does not listen", http.StatusServiceUnavailable)
			return
		}
		conn.Close()
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	return mux
}
