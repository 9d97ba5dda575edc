package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// answers is the directory in which a run keeps what it was answered. It is
// locked for as long as the process lives.
type answers struct {
	path string
	lock *os.File
}

const (
	answersPrefix = "claviger-evidence-"
	answersYoung  = time.Minute // one that is younger may not be locked yet
)

// newAnswers makes the directory, and removes those of runs that were killed.
func newAnswers(parent string) (*answers, error) {
	left, _ := filepath.Glob(filepath.Join(parent, answersPrefix+"*")) // the pattern is sound
	for _, path := range left {
		if info, err := os.Lstat(path); err != nil || time.Since(info.ModTime()) < answersYoung {
			continue
		}
		if a, err := lockAnswers(path); err == nil { // nobody has it
			a.remove()
		}
	}
	path, err := os.MkdirTemp(parent, answersPrefix)
	if err != nil {
		return nil, fmt.Errorf("make directory of answers: %w", err)
	}
	return lockAnswers(path)
}

// lockAnswers locks a directory that belongs to this account and that no living
// process has locked.
func lockAnswers(path string) (*answers, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var at unix.Stat_t
	if err = unix.Fstat(fd, &at); err == nil && int(at.Uid) != os.Geteuid() {
		err = unix.EPERM
	}
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &answers{path, os.NewFile(uintptr(fd), path)}, nil
}

func (a *answers) remove() {
	_ = os.RemoveAll(a.path)
	_ = a.lock.Close()
}
