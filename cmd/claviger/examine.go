package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"claviger.dev/internal/keeper"
	"claviger.dev/internal/server"
)

// examine looks, as the server, at what it can and others must not be able to
// reach on this host.
func examine(cfg server.Config, file string) []keeper.Measure {
	_, err := os.ReadDir(filepath.Join(cfg.DataDir, "unseal"))
	list := []keeper.Measure{
		seen("root", "slots out of the server's reach", err != nil, "",
			"code that runs in the server reads the root key's slots, and alters them", "give the processes uids of their own: [users]"),
		closed("configuration", file, 0o022, "who writes the configuration decides who is an operator", "chown root, chmod 0644"),
		closed("data directory", cfg.DataDir, 0o022, "who writes the data directory replaces database, record and slots", "chown root, chmod 0755"),
		closed("store and record", filepath.Join(cfg.DataDir, "server"), 0o077, "names, grants and uses are read, or altered, by others", "chmod 0700"),
	}
	if strings.HasPrefix(cfg.Store.DSNFile, "/") {
		list = append(list, closed("database password", cfg.Store.DSNFile, 0o077, "who reads it writes the database, and so decides policy", "chown it to the server's uid, chmod 0400"))
	}
	return list
}

// closed checks that others have none of the rights.
func closed(name, path string, rights fs.FileMode, gain, hint string) keeper.Measure {
	info, err := os.Stat(path)
	if err != nil {
		return seen("host", name, false, "cannot be looked at", gain, hint)
	}
	return seen("host", name, info.Mode().Perm()&rights == 0, fmt.Sprintf("%s has mode %04o", path, info.Mode().Perm()), gain, hint)
}

func seen(part, name string, ok bool, detail, gain, hint string) keeper.Measure {
	if ok {
		return keeper.Measure{Part: part, Name: name, State: "on", Detail: detail}
	}
	return keeper.Measure{Part: part, Name: name, State: "off", Detail: detail, Gain: gain, Hint: hint}
}
