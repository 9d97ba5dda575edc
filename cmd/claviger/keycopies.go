package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/appsecret"
	"claviger.dev/internal/hunt"
)

// maxCopy is the largest file in which a copy is looked for again, in bytes.
const maxCopy = 256 << 20

// overlap is how much of a piece of a file is in the next one too: more than a
// machine key takes in UTF-16 or in hex, wrapped in lines.
const overlap = 16 << 10

func (a *app) keyCopies() *cobra.Command {
	var check bool
	var masterKey string
	c := &cobra.Command{
		Use: "copies KEY", Short: "List where copies of a key were seen outside custody", Args: cobra.ExactArgs(1),
		Long: "List where material of a key was seen outside custody: where it was adopted from, and where it was found since.\n" +
			"With --check each file on this host that is on record is read again, and the key process is asked whether the\n" +
			"material is in it, as it stands, as its framework reads it, or in UTF-16, hex or base64. A copy that is gone is\n" +
			"closed in the record; the version stays exposed. It takes the right to manage the server, and to manage the key.\n" +
			"Exit status with --check: 2 when a copy is still there, 1 when one could not be looked at, else 0.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			key, err := s.GetKey(c.Context(), args[0])
			if err != nil {
				return err
			}
			seen := map[*pb.Copy]string{}
			if check {
				if err := a.checkCopies(c.Context(), s, key, masterKey, seen); err != nil {
					return err
				}
			}
			return a.printCopies(key, check, seen)
		}),
	}
	c.Flags().BoolVar(&check, "check", false, "look whether the copies on this host are still there, and close those that are gone")
	c.Flags().StringVar(&masterKey, "master-key", "", "file of the key of Rails credentials; the one beside them when left out")
	return c
}

// checkCopies looks at every open copy on this host.
func (a *app) checkCopies(ctx context.Context, s *client.Client, key *pb.Key, masterKey string, seen map[*pb.Copy]string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	for _, v := range key.Versions {
		for i, c := range v.Copies {
			switch {
			case c.Gone != nil:
				continue
			case c.Place.Host != host:
				seen[c] = "on another host"
				continue
			case !filepath.IsAbs(c.Place.Path):
				seen[c] = "not a file"
				continue
			case v.State == string(claviger.Destroyed): // nobody can tell any more what it was
				seen[c] = "not looked at: the version is destroyed"
				continue
			}
			there, err := a.stillThere(ctx, s, key, v.Number, c.Place.Path, masterKey)
			switch {
			case err != nil:
				seen[c] = "not looked at: " + err.Error()
			case there:
				seen[c] = "still there"
			default:
				now, err := s.CloseCopy(ctx, &pb.CloseCopyRequest{Key: key.Id, Version: v.Number, Place: c.Place})
				if err != nil {
					return err
				}
				for _, w := range now.Versions {
					if w.Number == v.Number && i < len(w.Copies) {
						c.Gone = w.Copies[i].Gone
					}
				}
			}
		}
	}
	return nil
}

// stillThere asks the key process whether a file holds the material of a version.
func (a *app) stillThere(ctx context.Context, s *client.Client, key *pb.Key, version uint32, path, masterKey string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if isGone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxCopy) {
		err = usagef("it is no regular file of at most %d bytes", maxCopy)
	}
	if err != nil {
		return false, err
	}
	ask := func(haystack []byte) (bool, error) {
		if len(haystack) == 0 {
			return false, nil
		}
		found, err := s.SearchMaterial(ctx, &pb.SearchMaterialRequest{Selector: key.Name, Haystack: haystack})
		return err == nil && slices.ContainsFunc(found.Hits, func(h *pb.Hit) bool { return h.KeyId == key.Id && h.Version == version }), err
	}
	buf := make([]byte, hunt.MaxHaystack)
	for have := 0; ; {
		n, err := io.ReadFull(f, buf[have:])
		if have += n; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
		there, wrong := ask(buf[:have])
		if there || wrong != nil {
			return there, wrong
		}
		if err != nil {
			break
		}
		have = copy(buf, buf[len(buf)-overlap:])
	}
	values, err := settingsOf(path, masterKey)
	if err != nil {
		return false, err
	}
	// Not with the rest of the file: where the secret is as it stands, it was found.
	for some := range slices.Chunk(values, 1000) {
		if there, err := ask(bytes.Join(some, []byte{0})); there || err != nil {
			return there, err
		}
	}
	return false, nil
}

// settingsOf returns the values of a configuration file as its framework reads
// them, which the file as it stands may not have: escaped, or encrypted.
func settingsOf(path, masterKey string) ([][]byte, error) {
	kind, ok := appsecret.Guess(path)
	if !ok {
		return nil, nil
	}
	data, err := readRegular(path, appsecret.MaxSize)
	if err != nil {
		return nil, err
	}
	src := appsecret.Source{Data: data}
	if kind == appsecret.Credentials {
		at := place{path: path, masterKey: masterKey}
		if src.Key, err = readRegular(at.keyFile(), 4096); err != nil {
			return nil, fmt.Errorf("read the key of the credentials: %w", err)
		}
	}
	values, err := appsecret.Values(kind, src)
	if err != nil && kind == appsecret.Credentials {
		return nil, err
	}
	var out [][]byte // of another kind, what cannot be read is no configuration, and was searched as it stands
	for _, v := range values {
		out = append(out, v)
	}
	return out, nil
}

// listedCopy is a copy as it is listed.
type listedCopy struct {
	Version uint32 `json:"version"`
	Host    string `json:"host,omitempty"`
	Path    string `json:"path"`
	Line    uint32 `json:"line,omitempty"`
	Seen    string `json:"seen"`
	By      string `json:"by,omitempty"`
	Run     string `json:"run,omitempty"`
	Status  string `json:"status"` // on record, gone, still there, or why it was not looked at
	Gone    string `json:"gone,omitempty"`
}

func (a *app) listCopies(list []listedCopy) error {
	if a.format != "table" {
		text, err := json.Marshal(map[string]any{"copies": list})
		if err != nil {
			return err
		}
		return a.printJSON(text)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	row(w, "VERSION", "HOST", "PLACE", "SEEN", "BY", "STATUS")
	for _, l := range list {
		place := fmt.Sprintf("%q", l.Path)
		if l.Line > 0 {
			place += fmt.Sprintf(" line %d", l.Line)
		}
		row(w, l.Version, dash(l.Host), place, l.Seen, dash(l.By), strings.TrimSpace(l.Status+" "+l.Gone))
	}
	return w.Flush()
}

// printCopies lists the copies, and turns what was seen into an exit status.
func (a *app) printCopies(key *pb.Key, check bool, seen map[*pb.Copy]string) error {
	list := []listedCopy{}
	for _, v := range key.Versions {
		for _, c := range v.Copies {
			l := listedCopy{Version: v.Number, Host: c.Place.Host, Path: c.Place.Path, Line: c.Place.Line, Seen: when(c.Seen), By: c.By, Run: c.Run, Status: cmp.Or(seen[c], "on record")}
			if c.Gone != nil {
				l.Status, l.Gone = "gone", when(c.Gone)
			}
			list = append(list, l)
		}
	}
	if err := a.listCopies(list); err != nil || !check {
		return err
	}
	status := 0
	for c, what := range seen {
		switch {
		case what == "still there":
			status = 2
		case c.Gone == nil && status == 0:
			status = 1
		}
	}
	if status != 0 {
		return exitError(status)
	}
	return nil
}

// countCopies returns how many copies of a key are on record, and how many of
// which it is known that they are gone.
func countCopies(k *pb.Key) (there, gone int) {
	for _, v := range k.Versions {
		for _, c := range v.Copies {
			if c.Gone == nil {
				there++
			} else {
				gone++
			}
		}
	}
	return there, gone
}
