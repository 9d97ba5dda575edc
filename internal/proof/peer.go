package proof

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"claviger.dev"
)

// maxProcFile is the most that is read of a file under /proc, in bytes.
const maxProcFile = 16 << 10

// Peer is the program that opened the other end of one Unix socket connection.
//
// Uid and gid come from SO_PEERCRED and are as the kernel recorded them at
// connect. Executable, cgroup and unit are read once, when the connection is
// accepted, through a descriptor of the process's directory under /proc that
// was checked against the pidfd (SO_PEERPIDFD, Linux 6.5): it can never come to
// mean another process. An exec keeps the process and its connections, so the
// executable is compared again at each request; once it differs, or the
// process is gone, these facts are absent for the rest of the connection. A
// connection that another program inherited is attributed to its opener for as
// long as that runs: these facts keep the wrong program out, not a hostile one
// of the same uid, which could as well trace the right one.
//
// The executable of another uid's process cannot be read without
// CAP_SYS_PTRACE, which a server should not have; it is then absent.
type Peer struct {
	mu    sync.Mutex
	dir   int            // O_PATH descriptor of /proc/PID, -1 when there is none
	exe   unix.Stat_t    // of the executable
	facts claviger.Facts // as read at accept
}

// NewPeer reads who opened the connection. It fails only where the kernel does
// not tell the uid; the caller then closes the connection.
func NewPeer(conn *net.UnixConn) (*Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reach socket: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	pidfd := -1
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			pidfd = n
		}
	}); err != nil {
		return nil, fmt.Errorf("reach socket: %w", err)
	}
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if credErr != nil {
		return nil, fmt.Errorf("read peer credentials: %w", credErr)
	}
	p := &Peer{dir: -1, facts: claviger.Facts{Method: MethodPeer, UID: int(cred.Uid), GID: int(cred.Gid)}}
	if pidfd >= 0 && cred.Pid > 0 {
		p.read(int(cred.Pid), pidfd)
	}
	return p, nil
}

// read fills in what is known of the process while the pidfd shows that it is
// the one that connected.
func (p *Peer) read(pid, pidfd int) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	if !running(pidfd) {
		_ = unix.Close(dir)
		return
	}
	p.dir = dir
	exe, stat := executable(dir)
	cgroup := cgroupOf(dir)
	if again, same := executable(dir); exe != again || !sameFile(&stat, &same) || !running(pidfd) {
		return
	}
	p.exe = stat
	p.facts.PID, p.facts.Executable, p.facts.Cgroup, p.facts.Unit = pid, exe, cgroup, unitOf(cgroup)
}

// Facts returns what is known of the peer at this moment.
func (p *Peer) Facts() claviger.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.facts.PID != 0 && !p.unchanged() {
		p.facts.PID, p.facts.Executable, p.facts.Cgroup, p.facts.Unit = 0, "", "", ""
	}
	return p.facts
}

// unchanged reports whether the process lives and runs the same program. It
// costs one system call.
func (p *Peer) unchanged() bool {
	if p.dir < 0 {
		return false
	}
	var now unix.Stat_t
	if p.facts.Executable == "" { // not ours to read: that it lives is all that can be seen
		return unix.Fstatat(p.dir, "cgroup", &now, 0) == nil
	}
	return unix.Fstatat(p.dir, "exe", &now, 0) == nil && sameFile(&now, &p.exe)
}

// Close gives back what is held for the connection.
func (p *Peer) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dir >= 0 {
		_ = unix.Close(p.dir)
		p.dir = -1
	}
}

// running reports whether the process of a pidfd has not exited: its
// descriptor becomes readable when it does.
func running(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err == nil && n == 0
		}
	}
}

// executable returns the path of the program and its identity, or "" unless
// that path leads this process to the very same file: a process in a mount
// namespace of its own can give any path to its program.
func executable(dir int) (string, unix.Stat_t) {
	var running, here unix.Stat_t
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, "exe", buf)
	if err != nil || n >= len(buf) || unix.Fstatat(dir, "exe", &running, 0) != nil {
		return "", unix.Stat_t{}
	}
	path := string(buf[:n])
	if unix.Stat(path, &here) != nil || !sameFile(&here, &running) {
		return "", unix.Stat_t{}
	}
	return path, running
}

func sameFile(a, b *unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino }

// cgroupOf returns the path in the unified hierarchy, or "" when there is none
// or it lies outside what this process may see.
func cgroupOf(dir int) string {
	fd, err := unix.Openat(dir, "cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	buf := make([]byte, maxProcFile)
	n, err := unix.Read(fd, buf)
	if err != nil || n == len(buf) {
		return ""
	}
	return parseCgroup(string(buf[:n]))
}

// parseCgroup takes the path of the unified hierarchy ("0::PATH") out of a
// cgroup file, see cgroups(7).
func parseCgroup(file string) string {
	for line := range strings.Lines(file) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, " (deleted)") || strings.Contains(path+"/", "/../") {
			return ""
		}
		return path
	}
	return ""
}

// unitOf derives the systemd unit from a cgroup path. It is the first part
// below the slices: what a unit makes inside its own cgroup, which may be
// delegated to it, has no say. A unit of a user's manager is written with that
// manager before it, "user@1000.service/app.service", so that a user cannot
// take the name of a system unit.
func unitOf(cgroup string) string {
	manager := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(cgroup, "/"), "/") {
		switch {
		case strings.HasSuffix(part, ".slice"):
		case manager == "" && strings.HasPrefix(part, "user@") && strings.HasSuffix(part, ".service"):
			manager = part + "/"
		case strings.HasSuffix(part, ".service"), strings.HasSuffix(part, ".scope"):
			return manager + part
		default:
			return strings.TrimSuffix(manager, "/")
		}
	}
	return strings.TrimSuffix(manager, "/")
}
