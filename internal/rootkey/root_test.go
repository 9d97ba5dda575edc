package rootkey_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/rootkey"
	"github.com/google/go-cmp/cmp"
)

const (
	phrase     = "correct horse battery staple"
	credential = "0123456789abcdefghijklmnopqrstuvwxyz"
)

// answers gives what is asked for; an empty one fails the test when asked.
type answers struct{ phrase, credential string }

func (a answers) secrets(t *testing.T) rootkey.Secrets {
	give := func(s string) ([]byte, error) {
		if s == "" {
			t.Error("a secret was asked for")
		}
		return []byte(s), nil
	}
	return rootkey.Secrets{
		Passphrase: func(string) ([]byte, error) { return give(a.phrase) },
		Credential: func(string) ([]byte, error) { return give(a.credential) },
	}
}

func newDir(t *testing.T) *rootkey.Dir {
	t.Helper()
	return &rootkey.Dir{Path: filepath.Join(t.TempDir(), "unseal"), Now: func() time.Time { return time.Unix(1_700_000_000, 5) }}
}

func create(t *testing.T, d *rootkey.Dir, slot rootkey.NewSlot, a answers) *rootkey.Root {
	t.Helper()
	r, err := d.New(nil, slot, a.secrets(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t *testing.T, d *rootkey.Dir, slot int, a answers) (*rootkey.Root, error) {
	t.Helper()
	sealed, err := d.Load()
	if err != nil {
		return nil, err
	}
	return sealed.Open(slot, a.secrets(t))
}

func TestKindsOfSlots(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		slot  rootkey.NewSlot
		right answers
		wrong func(*testing.T, *rootkey.Dir) answers
	}{
		"passphrase": {
			rootkey.NewSlot{Kind: rootkey.Passphrase}, answers{phrase: phrase},
			func(*testing.T, *rootkey.Dir) answers { return answers{phrase: phrase + "!"} },
		},
		"credential": {
			rootkey.NewSlot{Kind: rootkey.Credential, Source: "root"}, answers{credential: credential},
			func(*testing.T, *rootkey.Dir) answers { return answers{credential: credential + "!"} },
		},
		"file": {
			rootkey.NewSlot{Kind: rootkey.File}, answers{},
			func(t *testing.T, d *rootkey.Dir) answers {
				if err := os.WriteFile(filepath.Join(d.Path, "root-1.key"), bytes.Repeat([]byte{1}, 32), 0o600); err != nil {
					t.Fatal(err)
				}
				return answers{}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDir(t)
			made := create(t, d, tt.slot, tt.right)
			got, err := open(t, d, 0, tt.right)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(plain(made.Bundle), plain(got.Bundle)); diff != "" {
				t.Errorf("(-made +opened):\n%s", diff)
			}
			for name, mode := range map[string]os.FileMode{".": os.ModeDir | 0o700, rootkey.SlotsName: 0o600} {
				if info, err := os.Stat(filepath.Join(d.Path, name)); err != nil || info.Mode() != mode {
					t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
				}
			}
			if _, err := open(t, d, 0, tt.wrong(t, d)); !errors.Is(err, claviger.Denied) {
				t.Errorf("a wrong secret: %v", err)
			}
			if _, err := d.New(nil, tt.slot, tt.right.secrets(t)); !errors.Is(err, claviger.Conflict) {
				t.Errorf("made twice: %v", err)
			}
			if _, err := open(t, d, 7, answers{}); !errors.Is(err, claviger.NotFound) {
				t.Errorf("a slot that is not: %v", err)
			}
		})
	}
}

func TestNewSlotRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		slot rootkey.NewSlot
		a    answers
	}{
		"unknown kind":        {rootkey.NewSlot{Kind: "tape"}, answers{}},
		"no kind":             {rootkey.NewSlot{}, answers{}},
		"short passphrase":    {rootkey.NewSlot{Kind: rootkey.Passphrase}, answers{phrase: "11 bytes..."}},
		"long passphrase":     {rootkey.NewSlot{Kind: rootkey.Passphrase}, answers{phrase: strings.Repeat("x", 1025)}},
		"nameless credential": {rootkey.NewSlot{Kind: rootkey.Credential}, answers{}},
		"short credential":    {rootkey.NewSlot{Kind: rootkey.Credential, Source: "x"}, answers{credential: credential[:31]}},
		"credential of zeros": {rootkey.NewSlot{Kind: rootkey.Credential, Source: "x"}, answers{credential: strings.Repeat("0", 64)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := newDir(t).New(nil, tt.slot, tt.a.secrets(t)); !errors.Is(err, claviger.Invalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// edit changes the slots file as JSON and writes it in its one form, so that
// only the MAC or a check of the field can tell.
func edit(t *testing.T, d *rootkey.Dir, change func(file map[string]any, slot map[string]any)) {
	t.Helper()
	path := filepath.Join(d.Path, rootkey.SlotsName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	change(file, file["slots"].([]any)[0].(map[string]any))
	var shaped struct {
		Format any   `json:"format"`
		Slots  []any `json:"slots"`
		Bundle any   `json:"bundle"`
		MAC    any   `json:"mac"`
	}
	shaped.Format, shaped.Bundle, shaped.MAC = file["format"], file["bundle"], file["mac"]
	for _, s := range file["slots"].([]any) {
		raw, _ := json.Marshal(s)
		var slot rootkey.Slot
		if err := json.Unmarshal(raw, &slot); err != nil {
			t.Fatal(err)
		}
		shaped.Slots = append(shaped.Slots, slot)
	}
	out, _ := json.MarshalIndent(shaped, "", "  ")
	if err := os.WriteFile(path, append(out, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(s any) string {
	raw, _ := base64.StdEncoding.DecodeString(s.(string))
	raw[len(raw)/2] ^= 1
	return base64.StdEncoding.EncodeToString(raw)
}

func TestAlteredFieldIsRefused(t *testing.T) {
	t.Parallel()
	type object = map[string]any
	ordinary, costly := newDir(t), newDir(t) // Argon2id is slow under the race detector
	create(t, ordinary, rootkey.NewSlot{Kind: rootkey.Credential, Source: "root"}, answers{credential: credential})
	create(t, costly, rootkey.NewSlot{Kind: rootkey.Passphrase}, answers{phrase: phrase})
	argon := func(name string, value any) func(*testing.T, object, object) {
		return func(_ *testing.T, _, slot object) { slot["argon2id"].(object)[name] = value }
	}
	for name, change := range map[string]func(t *testing.T, file, slot object){
		"nothing":            func(*testing.T, object, object) {}, // the control: opens
		"format":             func(_ *testing.T, file, _ object) { file["format"] = "claviger root slots 2" },
		"bundle":             func(_ *testing.T, file, _ object) { file["bundle"] = flip(file["bundle"]) },
		"mac":                func(_ *testing.T, file, _ object) { file["mac"] = flip(file["mac"]) },
		"mac cut":            func(_ *testing.T, file, _ object) { file["mac"] = "AAAA" },
		"slot id":            func(_ *testing.T, _, slot object) { slot["id"] = 9 },
		"slot id zero":       func(_ *testing.T, _, slot object) { slot["id"] = 0 },
		"slot time":          func(_ *testing.T, _, slot object) { slot["created"] = "2020-01-01T00:00:00Z" },
		"slot kind":          func(_ *testing.T, _, slot object) { slot["kind"] = "file" },
		"slot source":        func(_ *testing.T, _, slot object) { slot["source"] = "../x" },
		"recipient":          func(_ *testing.T, _, slot object) { slot["recipient"] = flip(slot["recipient"]) },
		"wrapped":            func(_ *testing.T, _, slot object) { slot["wrapped"] = flip(slot["wrapped"]) },
		"argon2 salt":        func(_ *testing.T, _, slot object) { a := slot["argon2id"].(object); a["salt"] = flip(a["salt"]) },
		"argon2 weak time":   argon("time", 1),
		"argon2 weak memory": argon("memory_kib", 19<<10),
		"argon2 huge memory": argon("memory_kib", 1<<30),
		"argon2 huge time":   argon("time", 1<<20),
		"argon2 no threads":  argon("threads", 0),
		"no slots":           func(_ *testing.T, file, _ object) { file["slots"] = []any{} },
		"a slot twice":       func(_ *testing.T, file, slot object) { file["slots"] = []any{slot, slot} },
		"a slot added": func(t *testing.T, file, slot object) {
			other := newDir(t)
			r := create(t, other, rootkey.NewSlot{Kind: rootkey.Credential, Source: "mine"}, answers{credential: credential})
			mine := r.Slots()[0]
			mine.ID = 2
			file["slots"] = []any{slot, mine}
		},
	} {
		base := ordinary
		if strings.HasPrefix(name, "argon2") {
			base = costly
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDir(t)
			if err := os.CopyFS(d.Path, os.DirFS(base.Path)); err != nil {
				t.Fatal(err)
			}
			for path, mode := range map[string]os.FileMode{d.Path: 0o700, filepath.Join(d.Path, rootkey.SlotsName): 0o600} {
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			edit(t, d, func(file, slot map[string]any) { change(t, file, slot) })
			_, err := open(t, d, 0, answers{phrase: phrase, credential: credential})
			if ok := name == "nothing"; ok != (err == nil) {
				t.Errorf("got %v", err)
			} else if !ok && !errors.Is(err, claviger.Invalid) && !errors.Is(err, claviger.Denied) {
				t.Errorf("refused with %v", err)
			}
		})
	}
}

func TestAlteredByteIsRefused(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	create(t, d, rootkey.NewSlot{Kind: rootkey.Credential, Source: "root"}, answers{credential: credential})
	path := filepath.Join(d.Path, rootkey.SlotsName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(data); i++ {
		if i > 400 && i < len(data)-200 {
			i += 30 // through the long base64 in strides: each costs a key agreement
		}
		other := bytes.Clone(data)
		other[i] ^= 1
		if err := os.WriteFile(path, other, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, d, 0, answers{credential: credential}); err == nil {
			t.Fatalf("opened with byte %d altered: %q", i, other[max(0, i-20):min(len(other), i+20)])
		}
	}
	for _, other := range [][]byte{nil, data[:len(data)-1], append(bytes.Clone(data), '\n'), append([]byte(" "), data...), bytes.Repeat([]byte("["), 1<<20)} {
		if err := os.WriteFile(path, other, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, d, 0, answers{credential: credential}); !errors.Is(err, claviger.Invalid) {
			t.Errorf("%d bytes: %v", len(other), err)
		}
	}
}

// all has one slot of each kind: file 1, passphrase 2, credential 3.
func all(t *testing.T) (*rootkey.Dir, *rootkey.Root) {
	t.Helper()
	d, a := newDir(t), answers{phrase: phrase, credential: credential}
	r := create(t, d, rootkey.NewSlot{Kind: rootkey.File}, a)
	for i, slot := range []rootkey.NewSlot{{Kind: rootkey.Passphrase}, {Kind: rootkey.Credential, Source: "root"}} {
		if id, err := r.Add(slot, a.secrets(t)); err != nil || id != i+2 {
			t.Fatalf("slot %d: %v", id, err)
		}
	}
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	return d, r
}

func TestRotationNeedsNoOtherSecret(t *testing.T) {
	t.Parallel()
	d, _ := all(t)
	r, err := open(t, d, 1, answers{}) // neither passphrase nor credential at hand
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Rotate(); err != nil || n != 2 {
		t.Fatalf("generation %d: %v", n, err)
	}
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	for slot, a := range map[int]answers{1: {}, 2: {phrase: phrase}, 3: {credential: credential}} {
		got, err := open(t, d, slot, a)
		if err != nil {
			t.Fatalf("slot %d: %v", slot, err)
		}
		if diff := cmp.Diff(plain(r.Bundle), plain(got.Bundle)); diff != "" {
			t.Errorf("slot %d (-want +got):\n%s", slot, diff)
		}
	}
	if r.Bundle.Generations[0].Key == r.Bundle.Generations[1].Key || r.Bundle.Generations[1].Key == [32]byte{} {
		t.Error("the new generation is not a new key")
	}
	if _, err := r.Retire(3); !errors.Is(err, claviger.Invalid) {
		t.Errorf("retired the newest: %v", err)
	}
	newest := r.Bundle.Newest().Key
	if n, err := r.Retire(2); err != nil || n != 1 || len(r.Bundle.Generations) != 1 || r.Bundle.Newest().Key != newest {
		t.Errorf("retired %d: %v", n, err)
	}
}

func TestRemovedSlotOpensNoMore(t *testing.T) {
	t.Parallel()
	d, r := all(t)
	if err := r.Remove(9); !errors.Is(err, claviger.NotFound) {
		t.Errorf("removed a slot that is not: %v", err)
	}
	for _, id := range []int{1, 3} {
		if err := r.Remove(id); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Remove(2); !errors.Is(err, claviger.Invalid) {
		t.Errorf("removed the last slot: %v", err)
	}
	if _, err := os.Stat(filepath.Join(d.Path, "root-1.key")); err != nil {
		t.Errorf("the key file went before the slots file: %v", err)
	}
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.Path, "root-1.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key file of the removed slot: %v", err)
	}
	if _, err := open(t, d, 3, answers{credential: credential}); !errors.Is(err, claviger.NotFound) {
		t.Errorf("opened with a removed slot: %v", err)
	}
	if _, err := open(t, d, 0, answers{phrase: phrase}); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	r := create(t, d, rootkey.NewSlot{Kind: rootkey.File}, answers{})
	for err := error(nil); err == nil; {
		if len(r.Slots()) > 16 {
			t.Fatal("slots without end")
		}
		_, err = r.Add(rootkey.NewSlot{Kind: rootkey.File}, rootkey.Secrets{})
	}
	for err := error(nil); err == nil; {
		if len(r.Bundle.Generations) > rootkey.MaxGenerations {
			t.Fatal("generations without end")
		}
		_, err = r.Rotate()
	}
	keys := make([][32]byte, rootkey.MaxJoiners+1)
	for i := range keys {
		keys[i][0] = byte(i)
	}
	if err := r.Admit(keys...); !errors.Is(err, claviger.TooLarge) {
		t.Errorf("admitted too many: %v", err)
	}
	if err := r.Admit(keys[2], keys[0], keys[2]); err != nil || len(r.Bundle.Joiners) != 2 {
		t.Errorf("admitted %d: %v", len(r.Bundle.Joiners), err)
	}
	if err := r.Save(); err != nil { // the largest file must still be one that is read
		t.Fatal(err)
	}
	if got, err := open(t, d, 0, answers{}); err != nil || len(got.Bundle.Joiners) != 2 {
		t.Errorf("the full file: %v", err)
	}
}

func TestHolders(t *testing.T) {
	t.Parallel()
	const a, b = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg"
	r := create(t, newDir(t), rootkey.NewSlot{Kind: rootkey.File}, answers{})
	for name, tt := range map[string]struct {
		threshold int
		holders   []rootkey.Holder
		want      claviger.Code
	}{
		"two of two":      {2, []rootkey.Holder{{"zoe", a}, {"ann", b}}, ""},
		"none":            {0, nil, ""},
		"one of two":      {1, []rootkey.Holder{{"zoe", a}, {"ann", b}}, claviger.Invalid},
		"three of two":    {3, []rootkey.Holder{{"zoe", a}, {"ann", b}}, claviger.Invalid},
		"same name":       {2, []rootkey.Holder{{"ann", a}, {"ann", b}}, claviger.Conflict},
		"same recipient":  {2, []rootkey.Holder{{"zoe", a}, {"ann", a}}, claviger.Conflict},
		"wrong checksum":  {2, []rootkey.Holder{{"zoe", a[:len(a)-1] + "q"}, {"ann", b}}, claviger.Invalid},
		"secret identity": {2, []rootkey.Holder{{"zoe", "AGE-SECRET-KEY-1"}, {"ann", b}}, claviger.Invalid},
	} {
		if err := r.SetHolders(tt.threshold, tt.holders...); claviger.CodeOf(err) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriteIsAtomic(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"write", "sync", "close", "rename", "sync directory"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			d := newDir(t)
			r := create(t, d, rootkey.NewSlot{Kind: rootkey.File}, answers{})
			broken := errors.New("injected")
			d.FailAt(step, broken)
			if _, err := r.Rotate(); err != nil {
				t.Fatal(err)
			}
			if err := r.Save(); !errors.Is(err, broken) {
				t.Fatalf("saved: %v", err)
			}
			got, err := open(t, d, 0, answers{})
			if err != nil {
				t.Fatal(err)
			}
			want := 1
			if step == "sync directory" {
				want = 2 // renamed: the new one, whole
			}
			if n := len(got.Bundle.Generations); n != want {
				t.Errorf("%d generations, want %d", n, want)
			}
			if left, _ := filepath.Glob(filepath.Join(d.Path, "*.new")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestFilesOfOthersAreRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(dir string) error{
		"directory open":    func(dir string) error { return os.Chmod(dir, 0o750) },
		"file readable":     func(dir string) error { return os.Chmod(filepath.Join(dir, rootkey.SlotsName), 0o640) },
		"key file readable": func(dir string) error { return os.Chmod(filepath.Join(dir, "root-1.key"), 0o604) },
		"link": func(dir string) error {
			path := filepath.Join(dir, rootkey.SlotsName)
			return errors.Join(os.Rename(path, path+".x"), os.Symlink(path+".x", path))
		},
		"directory linked": func(dir string) error { return errors.Join(os.Rename(dir, dir+".x"), os.Symlink(dir+".x", dir)) },
		"fifo replaced by directory": func(dir string) error {
			path := filepath.Join(dir, rootkey.SlotsName)
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		},
		"another owner": func(dir string) error {
			if os.Geteuid() != 0 {
				return os.Chmod(dir, 0o707) // only root can give files away
			}
			return os.Chown(filepath.Join(dir, rootkey.SlotsName), 61003, 61003)
		},
		"another owner of the directory": func(dir string) error {
			if os.Geteuid() != 0 {
				return os.Chmod(dir, 0o707)
			}
			return os.Chown(dir, 61003, 61003)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDir(t)
			create(t, d, rootkey.NewSlot{Kind: rootkey.File}, answers{})
			if err := change(d.Path); err != nil {
				t.Fatal(err)
			}
			if _, err := open(t, d, 0, answers{}); err == nil {
				t.Error("opened")
			}
		})
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	create(t, d, rootkey.NewSlot{Kind: rootkey.File}, answers{})
	unlock, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(); !errors.Is(err, claviger.Conflict) {
		t.Errorf("a second writer: %v", err)
	}
	unlock()
	if unlock, err = d.Lock(); err != nil {
		t.Errorf("after the first: %v", err)
	} else {
		unlock()
	}
}

func TestAdoptKnowsItsIdentity(t *testing.T) {
	t.Parallel()
	d, r := all(t)
	stranger := create(t, newDir(t), rootkey.NewSlot{Kind: rootkey.File}, answers{})
	sealed, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sealed.Adopt(stranger.Bundle); !errors.Is(err, claviger.Invalid) {
		t.Errorf("took a bundle of another identity: %v", err)
	}
	if _, err := sealed.Adopt(r.Bundle); err != nil {
		t.Error(err)
	}
}

func FuzzSlotsFile(f *testing.F) {
	d := &rootkey.Dir{Path: filepath.Join(f.TempDir(), "u"), Now: time.Now}
	r, err := d.New(nil, rootkey.NewSlot{Kind: rootkey.File}, rootkey.Secrets{})
	if err == nil {
		err = r.Save()
	}
	if err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(d.Path, rootkey.SlotsName))
	if err != nil {
		f.Fatal(err)
	}
	if _, err := rootkey.RecodeSlots(data); err != nil {
		f.Fatal("the seed is refused:", err)
	}
	f.Add(data)
	f.Add(bytes.ReplaceAll(data, []byte(`"file"`), []byte(`"passphrase"`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		again, err := rootkey.RecodeSlots(data)
		if err == nil && !bytes.Equal(again, data) {
			t.Fatalf("accepted %q, encodes to %q", data, again)
		}
		if err != nil && !errors.Is(err, claviger.Invalid) {
			t.Fatalf("refused with %v", err)
		}
	})
}
