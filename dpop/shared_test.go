package dpop_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev/dpop"
	"claviger.dev/internal/store/postgres/pgtest"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite"
)

// startRedis runs a real server on a socket of its own until the test ends.
func startRedis(t *testing.T) (client *redis.Client, stop func()) {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "redis")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no",
		"--maxmemory-policy", "noeviction", "--dir", dir, "--daemonize", "no")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start redis-server: %v", err)
	}
	ready := make(chan bool)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "ready to accept connections") {
				ready <- true
				break
			}
		}
		for lines.Scan() { // so that it never waits for us
		}
		close(ready)
	}()
	if !<-ready {
		t.Fatal("redis-server ended at its start")
	}
	client = redis.NewClient(&redis.Options{Network: "unix", Addr: socket, MaxRetries: -1})
	stop = sync.OnceFunc(func() {
		client.Close()
		cancel()
		cmd.Wait() // killed
	})
	t.Cleanup(stop)
	return client, stop
}

func redisOf(client *redis.Client) *dpop.Redis {
	return &dpop.Redis{SetNX: func(ctx context.Context, key string, ttl time.Duration) (bool, error) {
		err := client.SetArgs(ctx, key, 1, redis.SetArgs{Mode: "NX", TTL: ttl}).Err()
		if errors.Is(err, redis.Nil) {
			return false, nil
		}
		return err == nil, err
	}}
}

func openSQL(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.ExecContext(t.Context(), dpop.Schema); err != nil {
		t.Fatal(err)
	}
	return db
}

// TestShared holds for every record that servers share: of those who burn one
// proof at the same moment one alone succeeds, and it is so per key.
func TestShared(t *testing.T) {
	t.Parallel()
	client, _ := startRedis(t)
	lite := openSQL(t, "sqlite", filepath.Join(t.TempDir(), "used.db")+"?_pragma=busy_timeout(5000)")
	for name, replays := range map[string]dpop.Replays{
		"memory":     &dpop.Memory{},
		"redis":      redisOf(client),
		"sqlite":     &dpop.SQL{DB: lite},
		"postgresql": &dpop.SQL{DB: openSQL(t, "pgx", pgtest.Start(t))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			until := time.Now().Add(time.Minute)
			for jti := range 8 {
				var wg sync.WaitGroup
				var fresh atomic.Int64
				for range 8 {
					wg.Go(func() {
						ok, err := replays.Burn(t.Context(), "key", fmt.Sprint(jti), until)
						if err != nil {
							t.Error(err)
						}
						if ok {
							fresh.Add(1)
						}
					})
				}
				wg.Wait()
				if fresh.Load() != 1 {
					t.Errorf("%d of 8 burnt proof %d", fresh.Load(), jti)
				}
			}
			if ok, err := replays.Burn(t.Context(), "other", "0", until); !ok || err != nil {
				t.Errorf("another key's: %t, %v", ok, err)
			}
		})
	}
}

func TestRedisForgets(t *testing.T) {
	t.Parallel()
	client, stop := startRedis(t)
	replays := redisOf(client)
	if ok, err := replays.Burn(t.Context(), "key", "0", time.Now().Add(time.Minute)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	keys, err := client.Keys(t.Context(), "dpop:*").Result()
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	if ttl := client.PTTL(t.Context(), keys[0]).Val(); ttl < 59*time.Second || ttl > 61*time.Second {
		t.Errorf("it is kept for %s", ttl)
	}
	stop()
	v := newVerifier()
	v.Replays = replays
	_, err = v.Check(t.Context(), dpop.Request{Proofs: []string{prove(t, newSigner(t, newKey(t), ""), dpop.Claims{Method: "GET", URL: apiURL})}, Method: "GET", URL: apiURL})
	if dpop.CodeOf(err) != dpop.Unavailable {
		t.Errorf("without the server: %v", err)
	}
}

func TestSQLPurge(t *testing.T) {
	t.Parallel()
	replays := &dpop.SQL{DB: openSQL(t, "sqlite", filepath.Join(t.TempDir(), "used.db")), Limit: 3}
	for i, ttl := range []time.Duration{time.Minute, time.Minute, time.Hour} {
		if ok, err := replays.Burn(t.Context(), "key", fmt.Sprint(i), start.Add(ttl)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if err := replays.Purge(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	if _, err := replays.Burn(t.Context(), "key", "3", start.Add(time.Hour)); !errors.Is(err, dpop.ErrFull) {
		t.Errorf("over the limit: %v", err)
	}
	if err := replays.Purge(t.Context(), start.Add(2*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if ok, err := replays.Burn(t.Context(), "key", "0", start.Add(time.Hour)); !ok || err != nil {
		t.Errorf("after its time: %t, %v", ok, err)
	}
	if ok, err := replays.Burn(t.Context(), "key", "2", start.Add(time.Hour)); ok || err != nil {
		t.Errorf("within its time: %t, %v", ok, err)
	}
}
