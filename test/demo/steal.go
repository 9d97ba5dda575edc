package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"filippo.io/age"
)

// canary is a key whose private half the demo knows, so that it can look for
// it. It is imported, and so called exposed; it goes the same ways as a key
// that was generated inside.
type canary struct{ private, public []byte }

// forms are the ways in which key bytes would usually stand somewhere.
func forms(raw []byte) [][]byte {
	out := [][]byte{raw, []byte(hex.EncodeToString(raw)), []byte(strings.ToUpper(hex.EncodeToString(raw)))}
	for shift := range 3 { // base64 at each alignment, less the characters that neighbours change
		padded := append(make([]byte, shift), raw...)
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString(padded)
			out = append(out, []byte(text[4:len(text)-4]))
		}
	}
	return out
}

func holds(data []byte, key []byte) bool {
	for _, form := range forms(key) {
		if bytes.Contains(data, form) {
			return true
		}
	}
	return false
}

func (s *stage) steal() error {
	s.step("Now the theft. A key that the demo knows is imported, so that its bytes can be looked for everywhere.")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	raw, err := key.Bytes()
	if err != nil {
		return err
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return err
	}
	c := canary{private: raw, public: point[1:33]}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	file := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(s.path("canary.pem"), file, 0o600); err != nil {
		return err
	}
	if _, err := ok(s.operator("key", "create", "dev/shop/canary", "--algorithm", "ecdsa-p256-sha256", "--for-import")); err != nil {
		return err
	}
	if _, err := ok(s.operator("key", "import", "dev/shop/canary", "--in", s.path("canary.pem"))); err != nil {
		return err
	}
	if _, err := ok(s.workload([]byte("used"), "key", "sign", "dev/shop/canary")); err != nil {
		return err
	}
	for _, attempt := range []func(canary) error{s.stealByAPI, s.stealFromDisk, s.stealFromBackup, s.stealFromMemory} {
		if err := attempt(c); err != nil {
			return err
		}
	}
	return nil
}

// searched reports one search: the public half must be there, or the search
// would prove nothing; the private half must not.
func (s *stage) searched(where string, data []byte, c canary) error {
	if !holds(data, c.public) {
		return fmt.Errorf("%s: not even the public half was found: the search is broken", where)
	}
	if holds(data, c.private) {
		return fmt.Errorf("%s: THE PRIVATE HALF WAS FOUND", where)
	}
	s.note("%s (%d bytes): the public half is there, the private half is not", where, len(data))
	return nil
}

func (s *stage) stealByAPI(c canary) error {
	s.note("- by the API:")
	all, err := ok(s.operator("--format", "json", "key", "show", "dev/shop/canary"))
	if err != nil {
		return err
	}
	if err := s.searched("every field of the key", []byte(all), c); err != nil {
		return err
	}
	r, err := s.operator("key", "export", "dev/shop/canary")
	return s.refused(r, err, 1)
}

func (s *stage) stealFromDisk(c canary) error {
	s.note("- from the disk: database, write-ahead log, record, everything that the server wrote:")
	var all []byte
	err := filepath.WalkDir(s.path("data"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		all = append(all, data...)
		return err
	})
	if err != nil {
		return err
	}
	return s.searched("disk", all, c)
}

func (s *stage) stealFromBackup(c canary) error {
	s.note("- from a backup, decrypted by its rightful recipient:")
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	if _, err := ok(s.operator("backup", "create", "--recipient", id.Recipient().String(), "--out", s.path("backup.age"))); err != nil {
		return err
	}
	f, err := os.Open(s.path("backup.age"))
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := age.Decrypt(f, id)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(plain)
	if err != nil {
		return err
	}
	return s.searched("backup", data, c)
}

func (s *stage) stealFromMemory(c canary) error {
	s.note("- from memory, as uid %d:", os.Geteuid())
	own, err := memory(os.Getpid())
	if err != nil {
		return err
	}
	if !holds(own, c.private) {
		return errors.New("the search is broken: it does not find the key in the demo's own memory")
	}
	s.note("the demo's own memory: found, so the search works")
	pids, err := descendants(s.server.Process.Pid)
	if err != nil {
		return err
	}
	for pid, name := range pids {
		data, err := memory(pid)
		switch {
		case errors.Is(err, fs.ErrPermission):
			s.note("%s (pid %d): refused, %v", name, pid, err)
		case err != nil:
			return err
		case holds(data, c.private):
			return fmt.Errorf("%s: THE PRIVATE HALF WAS FOUND in its memory", name)
		default:
			s.note("%s (pid %d): root may read %d MiB of it; the private half is not there", name, pid, len(data)>>20)
		}
	}
	if len(pids) < 2 {
		return errors.New("server and key process were not found")
	}
	return nil
}

// descendants returns the programs that a process started, by pid.
func descendants(pid int) (map[int]string, error) {
	found := map[int]string{}
	var list []byte
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	for _, task := range tasks { // a child belongs to the thread that started it
		more, err := os.ReadFile(task)
		if err == nil {
			list = append(list, more...)
		}
	}
	for _, field := range strings.Fields(string(list)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child))
		if err != nil {
			return nil, err
		}
		found[child] = strings.TrimSpace(string(args))
	}
	return found, nil
}

// memory reads whatever can be read of a process. Pages that cannot be read
// are left out: secret pages are among them.
func memory(pid int) ([]byte, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	var all []byte
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		page := make([]byte, 1<<16)
		for at := from; at < to; at += int64(len(page)) {
			n, err := mem.ReadAt(page[:min(int64(len(page)), to-at)], at)
			all = append(all, page[:n]...)
			if err != nil {
				break
			}
		}
	}
	return all, nil
}
