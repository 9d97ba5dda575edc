package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/store/sqlite"
)

// Restored says what a restore did.
type Restored struct {
	Manifest Manifest
	Replaced string // where the directory that was there before stands now; empty when there was none
}

// Restore puts the archive in place of dir, the server's data directory, which
// no server may have open. What was there is kept beside it. It answers
// claviger.Invalid for an archive that is damaged, cut short or not for these
// identities, and claviger.Conflict when the store in dir has seen more changes
// than the archive, and so revocations that would be undone, unless
// allowRollback says that this is meant. Dir is as before when it fails.
func Restore(ctx context.Context, r io.Reader, identities []age.Identity, dir string, allowRollback bool) (done Restored, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return done, fmt.Errorf("find directory: %w", err)
	}
	plain, err := age.Decrypt(reader{ctx, r}, identities...)
	if err != nil {
		return done, errArchive("the archive is not an age file for these identities", err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), ".restore-")
	if err != nil {
		return done, unavailable(fmt.Errorf("make directory: %w", err))
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }() // it has moved when all went well
	if done.Manifest, err = unpack(plain, temp); err != nil {
		return Restored{}, unavailable(err)
	}
	sequence, err := sqlite.Sequence(ctx, filepath.Join(temp, StoreFile))
	if err != nil || sequence != done.Manifest.Sequence {
		return Restored{}, errArchive("the store in the archive is not what its manifest says", err)
	}
	if done.Replaced, err = replace(ctx, temp, dir, sequence, allowRollback); err != nil {
		return Restored{}, unavailable(err)
	}
	return done, nil
}

func errArchive(msg string, err error) error {
	if e, ok := errors.AsType[*claviger.Error](err); ok && e.Code == claviger.Deadline {
		return err
	}
	return claviger.Errorf(claviger.Invalid, msg, "use another copy of the archive, or the identity that it was encrypted to").Wrap(err)
}

// filePattern is what an archive may hold beside its manifest.
var filePattern = regexp.MustCompile(`^(claviger\.db|audit/[0-9]{1,32}\.jsonl)$`)

// unpack writes the files of an archive into a directory and verifies them
// against the manifest at its end.
func unpack(plain io.Reader, dir string) (m Manifest, err error) {
	if err := os.Mkdir(filepath.Join(dir, AuditDir), 0o700); err != nil {
		return m, fmt.Errorf("make directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return m, fmt.Errorf("open directory: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	var files []File
	left := int64(maxBytes)
	archive := tar.NewReader(plain)
	for {
		h, err := archive.Next()
		if err != nil {
			return m, errArchive("the archive is damaged or cut short", err)
		}
		if h.Typeflag != tar.TypeReg || len(h.PAXRecords) > 0 || h.Size < 0 {
			return m, errArchive("the archive holds something that no backup has", fmt.Errorf("%q of type %q", h.Name, h.Typeflag))
		}
		if h.Name == manifestFile {
			return readManifest(h, archive, plain, files)
		}
		if left -= h.Size; left < 0 || len(files) == maxFiles || !filePattern.MatchString(h.Name) {
			return m, errArchive("the archive holds something that no backup has", fmt.Errorf("%q of %d bytes", h.Name, h.Size))
		}
		f, err := writeFile(root, h, archive)
		if err != nil {
			return m, err
		}
		files = append(files, f)
	}
}

// writeFile writes one file and syncs it.
func writeFile(root *os.Root, h *tar.Header, r io.Reader) (_ File, err error) {
	f, err := root.OpenFile(filepath.FromSlash(h.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return File{}, errArchive("the archive holds a file twice", err)
	}
	if err != nil {
		return File{}, fmt.Errorf("create %s: %w", h.Name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	source := &remember{r: r}
	if _, err := io.CopyN(io.MultiWriter(f, sum), source, h.Size); err != nil {
		if source.err != nil {
			return File{}, errArchive("the archive is damaged or cut short", source.err)
		}
		return File{}, fmt.Errorf("write %s: %w", h.Name, err)
	}
	if err := f.Sync(); err != nil {
		return File{}, fmt.Errorf("sync %s: %w", h.Name, err)
	}
	return File{Name: h.Name, Size: h.Size, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// remember tells an error of the archive from one of the disk.
type remember struct {
	r   io.Reader
	err error
}

func (r *remember) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.err = err
	return n, err
}

// readManifest reads the last file of an archive and holds it against what was
// unpacked. The archive ends behind it: only its authenticated end shows that
// nothing was cut off.
func readManifest(h *tar.Header, archive *tar.Reader, plain io.Reader, files []File) (m Manifest, err error) {
	if h.Size > maxManifest {
		return m, errArchive("the archive's manifest is too large", nil)
	}
	b, err := io.ReadAll(archive)
	if err != nil {
		return m, errArchive("the archive is damaged or cut short", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil || d.InputOffset() != int64(len(b)) {
		return m, errArchive("the archive's manifest cannot be read", err)
	}
	if _, err := archive.Next(); !errors.Is(err, io.EOF) {
		return m, errArchive("the archive goes on after its manifest", err)
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(plain, 1)); n != 0 || err != nil {
		return m, errArchive("the archive is damaged or cut short", err)
	}
	if m.Format != format {
		return m, errArchive("the archive is of a form that this claviger does not know", nil)
	}
	if len(files) == 0 || files[0].Name != StoreFile || len(files) != len(m.Files) {
		return m, errArchive("the archive does not hold what its manifest says", nil)
	}
	for i, f := range m.Files {
		if f != files[i] {
			return m, errArchive("a file of the archive is not what its manifest says", fmt.Errorf("%q", f.Name))
		}
	}
	return m, nil
}

// replace puts temp in place of dir, in one step, and returns where what was
// there stands now.
func replace(ctx context.Context, temp, dir string, sequence uint64, allowRollback bool) (replaced string, err error) {
	if err := syncDirs(filepath.Join(temp, AuditDir), temp); err != nil {
		return "", err
	}
	parent := filepath.Dir(dir)
	info, err := os.Lstat(dir)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.Rename(temp, dir); err != nil {
			return "", fmt.Errorf("move into place: %w", err)
		}
		return "", syncDirs(parent)
	}
	if err != nil {
		return "", fmt.Errorf("look at the data directory: %w", err)
	}
	if !info.IsDir() {
		return "", claviger.Errorf(claviger.Invalid, "the data directory is not a directory", "name the directory that holds claviger.db")
	}
	unlock, err := sqlite.Lock(filepath.Join(dir, StoreFile))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := mayReplace(ctx, dir, sequence, allowRollback); err != nil {
		return "", err
	}
	if err := give(temp, info); err != nil {
		return "", err
	}
	// Moved aside and put in place are one step: there is no moment without a
	// store.
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
		return "", fmt.Errorf("move into place: %w", err)
	}
	replaced = dir + ".replaced-" + time.Now().UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(temp, replaced); err != nil {
		back := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
		return "", fmt.Errorf("keep what was there: %w", errors.Join(err, back))
	}
	return replaced, syncDirs(parent)
}

// mayReplace refuses to undo revocations.
func mayReplace(ctx context.Context, dir string, sequence uint64, allowRollback bool) error {
	path := filepath.Join(dir, StoreFile)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) || allowRollback {
		return nil
	}
	const hint = "restore a newer archive, or allow the roll-back and then repeat every revocation made since"
	present, err := sqlite.Sequence(ctx, path)
	if err != nil {
		return claviger.Errorf(claviger.Conflict, "the store that is there cannot be read, so it may be newer than the archive", hint).Wrap(err)
	}
	if present > sequence {
		return claviger.Errorf(claviger.Conflict, "the store that is there is newer than the archive: what was revoked since would be valid again", hint)
	}
	return nil
}

// give makes what was unpacked belong to whom the data directory belongs.
func give(temp string, info os.FileInfo) error {
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return filepath.WalkDir(temp, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

func syncDirs(paths ...string) error {
	for _, path := range paths {
		d, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("sync directory: %w", err)
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return fmt.Errorf("sync directory: %w", err)
		}
	}
	return nil
}
