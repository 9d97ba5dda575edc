// Package supervise starts the processes of one server and keeps them
// running: claviger-unseal, claviger-keyd and the server, each under its own
// uid where it may, and passes the ends of their sockets.
//
// It holds no secret and promises to parse nothing that a child says: of the
// server it only counts how often it asked for a key process, and of the rest
// it sees only that they exited and with what status. It must never keep the
// root socket, the frames socket or a passphrase for itself.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// User is a uid and its primary group. The zero User means: the supervisor's
// own uid.
type User struct{ UID, GID uint32 }

// LookupUser finds a user of the system by name. A number is a uid: the group
// is that of its account, and without an account the one of the same number.
func LookupUser(name string) (User, error) {
	u, err := user.Lookup(name)
	if n, number := strconv.ParseUint(name, 10, 32); err != nil && number == nil {
		if u, err = user.LookupId(name); err != nil {
			return User{UID: uint32(n), GID: uint32(n)}, nil
		}
	}
	if err != nil {
		return User{}, fmt.Errorf("look up user %q: %w", name, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return User{}, fmt.Errorf("read the uid of %q: %w", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return User{}, fmt.Errorf("read the gid of %q: %w", name, err)
	}
	return User{UID: uint32(uid), GID: uint32(gid)}, nil
}

// GroupsOf are the supplementary groups of the account with the uid, such as
// the one that may open a TPM; none where there is no account.
func GroupsOf(u User) []uint32 {
	account, err := user.LookupId(strconv.FormatUint(uint64(u.UID), 10))
	if err != nil {
		return nil
	}
	names, err := account.GroupIds()
	if err != nil {
		return nil
	}
	var groups []uint32
	for _, name := range names {
		if gid, err := strconv.ParseUint(name, 10, 32); err == nil && gid != 0 && uint32(gid) != u.GID {
			groups = append(groups, uint32(gid))
		}
	}
	return groups
}

// Users are the uids of the processes. They are used only when the supervisor
// runs as root; otherwise all run under its own uid. Those of devices, and
// claviger-unseal, also get the supplementary groups of their accounts.
type Users struct{ Server, Keyd, Unseal User }

// Config says what to run.
type Config struct {
	BinDir  string // where claviger, claviger-keyd and claviger-unseal are; empty is beside this program
	DataDir string // made if missing, with unseal/ and server/ below, each closed to others, and run/ for the socket
	Users   Users

	ServerArgs []string // of claviger; empty is "server"
	KeydArgs   []string // further flags of claviger-keyd, such as --relax
	UnsealArgs []string // further flags of claviger-unseal, such as --slot
	// Arrive is "join" or "restore" with its flags when the root key is to
	// come from elsewhere at the first start; empty opens the slots file.
	Arrive []string

	// Devices get a process each. One that fails or hangs is restarted alone;
	// the others and the key process never notice.
	Devices []Device
	// Token serves the slots that a token opens. One process is started beside
	// each claviger-unseal, which gets the other end of its socket and the flag
	// --token-fd. Nil: none.
	Token *Device

	// Credential is the path of a credential that only the supervisor can
	// read; claviger-unseal gets it as an open descriptor. Empty: none.
	Credential string
	// PassphraseFrom is claviger-unseal's standard input: a terminal, or a
	// pipe whose lines are passphrases. Nothing of it is kept, so what was
	// piped serves one start. Nil: nobody is there to type.
	PassphraseFrom *os.File
	Stderr         *os.File         // of all processes; nil is the supervisor's own
	Log            *slog.Logger     // of the supervisor; nil discards
	Signals        <-chan os.Signal // nil takes SIGHUP, SIGTERM and SIGINT of this process
	Grace          time.Duration    // for the server to stop; 0 is 15 s
}

// Run starts all and returns when ctx ends or SIGTERM or SIGINT arrives, after
// the server has stopped, then the key process. SIGHUP replaces the key
// process by one with a root key read afresh: the new one is started and
// handed to the server before the old one is told to stop. Signals are taken
// by this process alone while Run runs, and all its descriptors from 3 up are
// closed to children.
func Run(ctx context.Context, cfg Config) error {
	if cfg.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the programs: %w", err)
		}
		cfg.BinDir = filepath.Dir(self)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Stderr == nil {
		cfg.Stderr = os.Stderr
	}
	if cfg.Grace == 0 {
		cfg.Grace = 15 * time.Second
	}
	if len(cfg.ServerArgs) == 0 {
		cfg.ServerArgs = []string{"server"}
	}
	if os.Geteuid() != 0 {
		cfg.Users = Users{}
		cfg.Devices = slices.Clone(cfg.Devices)
		for i := range cfg.Devices {
			cfg.Devices[i].User = User{}
		}
		if cfg.Token != nil {
			token := *cfg.Token
			token.User, cfg.Token = User{}, &token
		}
	} else if u := cfg.Users; u.Server == u.Unseal || u.Keyd == u.Unseal || u.Server == u.Keyd {
		cfg.Log.Warn("processes share a uid: code that runs in the server can read the root key's slots", "server", u.Server.UID, "keyd", u.Keyd.UID, "unseal", u.Unseal.UID)
	}
	if cfg.Signals == nil {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
		defer signal.Stop(signals)
		cfg.Signals = signals
	}
	if err := cfg.Prepare(); err != nil {
		return err
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors to children: %w", err)
	}
	s := newSupervisor(cfg)
	defer close(s.over)
	return s.run(ctx)
}

// keydArgs tells the key process the uids of the others, so that it can say
// whether it has one of its own.
func (cfg *Config) keydArgs() []string {
	uid := func(u User) string {
		if u == (User{}) {
			return strconv.Itoa(os.Geteuid())
		}
		return strconv.FormatUint(uint64(u.UID), 10)
	}
	others := uid(cfg.Users.Server) + "," + uid(cfg.Users.Unseal)
	for _, d := range cfg.Devices {
		others += "," + uid(d.User)
	}
	return append([]string{"--others", others}, cfg.KeydArgs...)
}

// Prepare makes the directories that are not there, each for its own uid. Run
// does it too.
func (cfg *Config) Prepare() error {
	users := []User{cfg.Users.Server, cfg.Users.Keyd, cfg.Users.Unseal}
	for _, d := range cfg.Devices {
		users = append(users, d.User)
	}
	if cfg.Token != nil {
		users = append(users, cfg.Token.User)
	}
	for _, u := range users {
		if (u.UID == 0) != (u.GID == 0) {
			return fmt.Errorf("uid %d with gid %d would keep a right of root", u.UID, u.GID)
		}
	}
	if _, err := os.Stat(cfg.DataDir); errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(cfg.DataDir, 0o755); err == nil {
			err = os.Chmod(cfg.DataDir, 0o755) // whatever the umask: each uid has to pass through
		}
		if err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
	}
	for _, d := range []struct {
		name string
		user User
		mode fs.FileMode
	}{{"unseal", cfg.Users.Unseal, 0o700}, {"server", cfg.Users.Server, 0o700}, {"run", cfg.Users.Server, 0o755}} {
		path := filepath.Join(cfg.DataDir, d.name)
		err := os.Mkdir(path, d.mode)
		if errors.Is(err, fs.ErrExist) {
			continue // whoever made it settled whose it is
		}
		if err == nil && d.user != (User{}) {
			err = os.Chown(path, int(d.user.UID), int(d.user.GID))
		}
		if err != nil {
			return fmt.Errorf("make the directory of %s: %w", d.name, err)
		}
	}
	return nil
}
