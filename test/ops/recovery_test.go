package ops_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	pb "claviger.dev/api/claviger/v1"
)

// holder is one who has a recovery share, with the file of an age identity.
type holder struct {
	name, identity, share string
}

// holders names holders and makes their shares, two of which restore.
func (s *site) holders(names ...string) (all []holder) {
	s.t.Helper()
	args := []string{"holders", "--threshold", "2"}
	for _, name := range names {
		id, err := age.GenerateX25519Identity()
		check(s.t, err)
		file := filepath.Join(s.dir, name+".key")
		check(s.t, os.WriteFile(file, []byte(id.String()+"\n"), 0o600))
		all = append(all, holder{name, file, filepath.Join(s.dir, "shares", name+".age")})
		args = append(args, name+"="+id.Recipient().String())
	}
	s.root(args...)
	s.hup()
	s.run("recovery", "create", "--out", filepath.Join(s.dir, "shares"))
	return all
}

// seal has a holder seal a share; it returns the file, and what was said when
// the holder could not.
func (s *site) seal(h holder, challenge, pin string) (sealed, talk string) {
	s.t.Helper()
	sealed = filepath.Join(s.dir, h.name+".sealed")
	_, talk, code := s.try("", "recovery", "seal", "--challenge", challenge, "--share", h.share, "--identity", h.identity, "--pin", pin, "--out", sealed)
	if code == 0 {
		talk = ""
	}
	return sealed, talk
}

// verify tests shares of the holders and returns what is said and the exit status.
func (s *site) verify(pin string, from ...holder) (string, int) {
	s.t.Helper()
	challenge := filepath.Join(s.dir, "challenge.json")
	s.run("recovery", "challenge", "--out", challenge)
	args := []string{"recovery", "verify", "--challenge", challenge}
	for _, h := range from {
		sealed, talk := s.seal(h, challenge, pin)
		if talk != "" {
			return talk, 1
		}
		args = append(args, sealed)
	}
	out, talk, code := s.try("", args...)
	return out + talk, code
}

// backup writes an archive and the identity that reads it.
func (s *site) backup() (archive, identity string) {
	id, err := age.GenerateX25519Identity()
	check(s.t, err)
	archive, identity = filepath.Join(s.dir, "backup.age"), filepath.Join(s.dir, "backup.key")
	check(s.t, os.WriteFile(identity, []byte(id.String()+"\n"), 0o600))
	s.run("backup", "create", "--recipient", id.Recipient().String(), "--out", archive)
	return archive, identity
}

// restoredSite is a new host with the data of a backup and no root key.
func restoredSite(t *testing.T, archive, identity string) *site {
	t.Helper()
	fresh := newSite(t, "")
	check(t, os.Mkdir(fresh.data, 0o755))
	fresh.run("backup", "restore", archive, "--identity", identity, "--dir", filepath.Join(fresh.data, "server"))
	owner := fmt.Sprintf("%d:%d", serverUID, serverUID)
	if out, err := exec.Command("chown", "-R", owner, filepath.Join(fresh.data, "server")).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v\n%s", err, out)
	}
	return fresh
}

func TestRecovery(t *testing.T) {
	t.Parallel()
	old := newSite(t, "")
	pin := old.run("init", "--config", old.config, "--kind", "file")
	old.up()
	k := old.key("prod/shop/receipts")
	shop, _ := old.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), shop, k))
	held := old.holders("ann", "bob", "eve")

	broken := held[0]
	broken.name, broken.share = "altered", filepath.Join(old.dir, "altered.age")
	text, err := os.ReadFile(held[0].share)
	check(t, err)
	text[len(text)-1] ^= 1
	check(t, os.WriteFile(broken.share, text, 0o600))
	stranger := holder{"stranger", held[1].identity, held[0].share}
	for _, tc := range []struct {
		name string
		from []holder
		pin  string
		code int
		said string
	}{
		{"enough", held[1:], pin, 0, "2 shares restore"},
		{"all", held, pin, 0, "3 shares restore"},
		{"too few", held[:1], pin, 2, "do NOT restore"},
		{"one twice", []holder{held[0], {"again", held[0].identity, held[0].share}}, pin, 2, "do NOT restore"},
		{"altered", []holder{broken, held[1]}, pin, 1, "error"},
		{"of another holder", []holder{stranger, held[1]}, pin, 1, "did not match"},
		{"another pin", held[:2], strings.Repeat("5a", 32), 1, "not the one that is pinned"},
	} {
		if said, code := old.verify(tc.pin, tc.from...); code != tc.code || !strings.Contains(said, tc.said) {
			t.Errorf("%s: exit status %d, %s", tc.name, code, said)
		}
	}

	archive, keeper := old.backup()
	old.kill()

	fresh := restoredSite(t, archive, keeper)
	fresh.launch(nil, "--restore", "--slot-kind", "file", "--identity", pin)
	shown := fresh.wait(0, `'claviger recovery seal --pin': ([0-9a-f]{64})`)[1]
	challenge := fresh.wait(0, `challenge=(\S+)`)[1]
	one, talk := old.seal(held[0], challenge, shown)
	if talk != "" {
		t.Fatal(talk)
	}
	if _, talk := old.seal(held[1], challenge, pin); talk == "" {
		t.Error("a share was sealed although the pin is of another key process")
	}
	mark := fresh.mark()
	fresh.run("recovery", "restore", "--data-dir", fresh.data, one) // too few
	fresh.wait(mark, "the shares do not restore a root key")
	fresh.wait(mark, `challenge=(\S+)`) // and here is another
	one, _ = old.seal(held[0], challenge, shown)
	two, talk := old.seal(held[2], challenge, shown)
	if talk != "" {
		t.Fatal(talk)
	}
	fresh.run("recovery", "restore", "--data-dir", fresh.data, one, two)
	fresh.serving(0)
	restored, err := fresh.op.GetKey(t.Context(), k.Name)
	check(t, err)
	if restored.Versions[0].Fingerprint != k.Versions[0].Fingerprint {
		t.Error("the restored server has another key")
	}
	caller := fresh.connect(reach(t, filepath.Join(old.dir, "shop"), fresh.address))
	check(t, sign(t.Context(), caller, k))
	if info, err := fresh.op.Info(t.Context()); err != nil || info.IdentityFingerprint != pin {
		t.Errorf("identity after the restore: %v, %v", info, err)
	}
	_, err = fresh.op.ListKeys(t.Context(), &pb.ListKeysRequest{})
	check(t, err)
	fresh.run("audit", "verify")
	fresh.stop() // and from its own slots
	fresh.up()
	check(t, sign(t.Context(), caller, k))
}
