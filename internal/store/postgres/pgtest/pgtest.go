// Package pgtest starts a real PostgreSQL for tests, from the machine's own
// binaries: one server for a test binary, one database for a test. It must
// never touch a server that it did not start.
package pgtest

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// script runs the server until its standard input ends, which it does when the
// test binary exits in whatever way, and then removes everything.
const script = `
bin=$1 dir=$2
trap '' INT TERM HUP
"$bin/initdb" -D "$dir/data" -U claviger -A trust -E UTF8 --no-locale --no-sync >"$dir/log" 2>&1 &&
"$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 60 start -o "-k $dir -F -c listen_addresses= -c full_page_writes=off \
 -c synchronous_commit=off -c max_connections=300 -c shared_buffers=32MB -c autovacuum=off" </dev/null >"$dir/ctl" 2>&1 &&
echo ready || cat "$dir/log" "$dir/ctl"
exec >/dev/null 2>&1
read line
"$bin/pg_ctl" -D "$dir/data" -m immediate -w stop
rm -rf "$dir"
`

// Server is a running PostgreSQL.
type Server struct {
	dir   string
	stdin interface{ Close() error }
	next  chan int // the number of the next database
}

// shared is the server of this test binary.
var shared = sync.OnceValues(start)

// Start returns the connection string of a new and empty database. The first
// call starts the server.
func Start(t testing.TB) (dsn string) {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	n := <-s.next
	s.next <- n + 1
	name := fmt.Sprintf("test_%d", n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	_, err = c.Exec(ctx, "CREATE DATABASE "+name)
	if err := errors.Join(err, c.Close(ctx)); err != nil {
		t.Fatalf("create database: %v", err)
	}
	return s.DSN(name)
}

// DSN returns the connection string of a database on the server.
func (s *Server) DSN(database string) string {
	return fmt.Sprintf("host=%s user=claviger dbname=%s", s.dir, database)
}

// start starts a server on a Unix socket in a directory of its own.
func start() (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "pgtest-") // a socket's path must be short
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	cmd := exec.Command("/bin/sh", "-c", script, "pgtest", bin, dir)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	// A process group of its own, so that an interrupt at the terminal does
	// not keep it from cleaning up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		if cmd.SysProcAttr.Credential, err = unprivileged(); err != nil {
			return nil, err
		}
		if err := os.Chown(dir, int(cmd.SysProcAttr.Credential.Uid), int(cmd.SysProcAttr.Credential.Gid)); err != nil {
			return nil, fmt.Errorf("hand over directory: %w", err)
		}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	var said []string
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if lines.Text() == "ready" {
			s := &Server{dir: dir, stdin: stdin, next: make(chan int, 1)}
			s.next <- 1
			return s, nil
		}
		said = append(said, lines.Text())
	}
	return nil, errors.Join(fmt.Errorf("the server did not start: %s", strings.Join(said, "\n")), stdin.Close(), cmd.Wait())
}

// binaries finds the newest PostgreSQL on the machine.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) })), nil
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", fmt.Errorf("install PostgreSQL's server (Debian: apt-get install postgresql): %w", err)
	}
	return filepath.Dir(path), nil
}

func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("there is neither a user postgres nor nobody")
}
