package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Proxy stands between one server and the database, and makes faults.
type Proxy struct {
	listener net.Listener
	to       string // path of the database's socket
	dsn      string

	mu    sync.Mutex // guards what follows
	moved *sync.Cond // the path was opened or closed
	held  bool
	delay time.Duration
	conns map[net.Conn]bool
	done  bool
}

// NewProxy starts a proxy for the database of a connection string that Start
// returned.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	dir, rest, _ := strings.Cut(strings.TrimPrefix(dsn, "host="), " ")
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	p := &Proxy{
		listener: l, to: filepath.Join(dir, ".s.PGSQL.5432"), conns: map[net.Conn]bool{},
		dsn: fmt.Sprintf("host=127.0.0.1 port=%d sslmode=disable %s", port, rest),
	}
	p.moved = sync.NewCond(&p.mu)
	go p.serve()
	t.Cleanup(p.close)
	return p
}

// DSN is the connection string that leads through the proxy.
func (p *Proxy) DSN() string { return p.dsn }

// Hold stops what passes in either direction, as a network that loses every
// packet does, or lets it go on.
func (p *Proxy) Hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held
	p.moved.Broadcast()
}

// Delay has everything that passes wait, in either direction.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Cut closes every connection.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.done = true
	p.moved.Broadcast()
	p.mu.Unlock()
	_ = p.listener.Close()
	p.Cut()
}

func (p *Proxy) serve() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.join(c)
	}
}

func (p *Proxy) join(c net.Conn) {
	defer func() { _ = c.Close() }()
	if !p.pass() {
		return
	}
	db, err := (&net.Dialer{}).DialContext(context.Background(), "unix", p.to)
	if err != nil {
		return
	}
	defer func() { _ = db.Close() }()
	p.mu.Lock()
	p.conns[c] = true
	p.mu.Unlock()
	var there sync.WaitGroup
	there.Go(func() { p.pump(db, c) })
	p.pump(c, db)
	there.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// pump copies until either end closes, and then closes both.
func (p *Proxy) pump(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && p.pass() {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits until the path is open; false when the proxy is closed.
func (p *Proxy) pass() bool {
	p.mu.Lock()
	delay := p.delay
	p.mu.Unlock()
	if delay > 0 {
		<-time.After(delay)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held && !p.done {
		p.moved.Wait()
	}
	return !p.done
}

// Copy makes a copy of a database, as a backup or a standby that is behind
// would have it. Connections to it are ended.
func Copy(t testing.TB, dsn string) {
	t.Helper()
	name := database(dsn)
	alter(t, dsn, name, "CREATE DATABASE "+name+"_copy TEMPLATE "+name)
}

// Restore puts the copy in the place of the database, as a restore or a failover
// does. Connections are ended.
func Restore(t testing.TB, dsn string) {
	t.Helper()
	name := database(dsn)
	alter(t, dsn, name, "ALTER DATABASE "+name+" RENAME TO "+name+"_lost", "ALTER DATABASE "+name+"_copy RENAME TO "+name)
}

// Return takes Restore back: the database that was lost is there again.
func Return(t testing.TB, dsn string) {
	t.Helper()
	name := database(dsn)
	alter(t, dsn, name, "ALTER DATABASE "+name+" RENAME TO "+name+"_copy", "ALTER DATABASE "+name+"_lost RENAME TO "+name)
}

func database(dsn string) string {
	_, name, _ := strings.Cut(dsn, "dbname=")
	return name
}

// alter runs statements while nobody is connected to a database.
func alter(t testing.TB, dsn, name string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pgx.Connect(ctx, strings.TrimSuffix(dsn, name)+"postgres")
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	all := append([]string{
		"ALTER DATABASE " + name + " ALLOW_CONNECTIONS false",
		"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '" + name + "'",
	}, statements...)
	for _, s := range all {
		if _, failed := c.Exec(ctx, s); failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", s, failed))
		}
	}
	_, failed := c.Exec(ctx, "UPDATE pg_database SET datallowconn = true WHERE datname LIKE '"+name+"%' AND datname NOT LIKE '%\\_lost'")
	if err := errors.Join(err, failed, c.Close(ctx)); err != nil {
		t.Fatal(err)
	}
}
