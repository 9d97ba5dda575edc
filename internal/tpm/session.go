package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"claviger.dev/internal/tpm/attest"
)

// Persistent handles. The first is where the TCG's provisioning guidance puts
// the storage root key; the others are Claviger's own.
const (
	commonSRK = tpm2.TPMHandle(0x81000001)
	ownSRK    = tpm2.TPMHandle(0x8100C1A0)
	ownAK     = tpm2.TPMHandle(0x8100C1A1)
)

// slots is how many keys stay loaded. A TPM need not have more than three
// slots, and a command on a persistent key takes one for itself.
const slots = 2

// session is what there is on one connection to the device.
type session struct {
	link   *link
	srk    tpm2.NamedHandle
	public tpm2.TPMTPublic // of the storage root key
	loaded []*loaded       // most recently used first

	ekArea  []byte   // TPMT_PUBLIC of the endorsement key, once it was asked for
	ekChain [][]byte // its certificates
}

// loaded is a key in a slot, with a session that carries its authorisation.
type loaded struct {
	handle tpm2.AuthHandle
	key    *Key
	close  func() error
}

// connect opens a connection, tidies up after whoever had it before, and finds
// the storage root key or makes it.
func connect(path string) (*session, error) {
	l, err := dial(path)
	if err != nil {
		return nil, err
	}
	s := &session{link: l}
	if err := s.prepare(); err != nil {
		l.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) prepare() error {
	if s.link.raw {
		if err := s.tidy(); err != nil {
			return err
		}
	}
	for _, handle := range []tpm2.TPMHandle{commonSRK, ownSRK} {
		if public, name, err := s.readPublic(handle); err == nil && isStorageRoot(public) {
			s.srk, s.public = tpm2.NamedHandle{Handle: handle, Name: name}, *public
			return nil
		} else if err != nil && !errors.Is(err, tpm2.TPMRCHandle) {
			return err
		}
	}
	return s.makeSRK()
}

// tidy flushes what an earlier user of a device without a resource manager
// left in its slots. Only one at a time can be connected, so nobody uses it.
func (s *session) tidy() error {
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} { // objects, active and saved sessions
		handles, err := s.handles(first)
		if errors.Is(err, tpm2.TPMRCInitialize) { // a bare device that nobody has started
			if _, err = (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(s.link); err == nil {
				handles, err = s.handles(first)
			}
		}
		if err != nil {
			return err
		}
		for _, h := range handles {
			if err := s.flush(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) handles(first uint32) ([]tpm2.TPMHandle, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(s.link)
	if err != nil {
		return nil, fmt.Errorf("list handles: %w", err)
	}
	list, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("list handles: %w", err)
	}
	return list.Handle, nil
}

func (s *session) flush(h tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(s.link); err != nil {
		return fmt.Errorf("flush %#x: %w", h, err)
	}
	return nil
}

func (s *session) readPublic(h tpm2.TPMHandle) (*tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(s.link)
	if err != nil {
		return nil, tpm2.TPM2BName{}, fmt.Errorf("read public area %#x: %w", h, err)
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		return nil, tpm2.TPM2BName{}, fmt.Errorf("read public area %#x: %w", h, err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil || !bytes.Equal(name.Buffer, r.Name.Buffer) {
		return nil, tpm2.TPM2BName{}, fmt.Errorf("read public area %#x: the name is not its own: %w", h, errLost)
	}
	return public, r.Name, nil
}

// isStorageRoot reports whether a key may be the parent of ours: it cannot
// leave the TPM, so neither can its children.
func isStorageRoot(p *tpm2.TPMTPublic) bool {
	a := p.ObjectAttributes
	return a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.UserWithAuth && a.NoDA &&
		a.Restricted && a.Decrypt && !a.SignEncrypt && p.NameAlg == tpm2.TPMAlgSHA256 &&
		(p.Type == tpm2.TPMAlgECC || p.Type == tpm2.TPMAlgRSA)
}

// makeSRK makes the storage root key of the TCG's template and persists it.
// The same TPM makes the same one until it is cleared.
func (s *session) makeSRK() error {
	handle := commonSRK
	if _, _, err := s.readPublic(commonSRK); err == nil {
		handle = ownSRK // the usual place holds something else
	}
	name, err := s.makePersistent(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, handle)
	if err != nil {
		return fmt.Errorf("make storage root key: %w", err)
	}
	public, _, err := s.readPublic(handle)
	if err != nil {
		return err
	}
	s.srk, s.public = tpm2.NamedHandle{Handle: handle, Name: name}, *public
	return nil
}

// makePersistent makes a primary key and persists it.
func (s *session) makePersistent(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, at tpm2.TPMHandle) (tpm2.TPM2BName, error) {
	s.evict(0)
	made, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(s.link)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	_, err = tpm2.EvictControl{
		Auth:         tpm2.TPMRHOwner,
		ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: at,
	}.Execute(s.link)
	return made.Name, errors.Join(err, s.flush(made.ObjectHandle))
}

// ak returns the attestation key, and makes it where there is none: a
// restricted signing key of the endorsement hierarchy, whose attestations
// carry the TPM's counters as they are.
func (s *session) ak() (tpm2.AuthHandle, *tpm2.TPMTPublic, error) {
	public, name, err := s.readPublic(ownAK)
	if errors.Is(err, tpm2.TPMRCHandle) {
		if _, err = s.makePersistent(tpm2.TPMRHEndorsement, akTemplate(), ownAK); err == nil {
			public, name, err = s.readPublic(ownAK)
		}
	}
	if err != nil {
		return tpm2.AuthHandle{}, nil, fmt.Errorf("attestation key: %w", err)
	}
	if _, err := attest.AKName(tpm2.Marshal(public)); err != nil {
		return tpm2.AuthHandle{}, nil, err
	}
	return tpm2.AuthHandle{Handle: ownAK, Name: name, Auth: tpm2.PasswordAuth(nil)}, public, nil
}

// salted are the options of a session whose key nobody on the bus knows, and
// whose parameters are encrypted as far as commands allow.
func (s *session) salted(direction ...tpm2.AuthOption) []tpm2.AuthOption {
	return append([]tpm2.AuthOption{tpm2.Salted(s.srk.Handle, s.public)}, direction...)
}

// authorised returns a session for one command, with its parameters encrypted
// both ways.
func (s *session) authorised(auth []byte) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, s.salted(tpm2.Auth(auth), tpm2.AESEncryption(128, tpm2.EncryptInOut))...)
}

// plain returns a session for one command whose parameters need no hiding.
func (s *session) plain(auth []byte) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, s.salted(tpm2.Auth(auth))...)
}

// parent is the storage root key, to be used in one command.
func (s *session) parent() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: s.srk.Handle, Name: s.srk.Name, Auth: s.authorised(nil)}
}

// evict empties slots until at most keep keys are loaded.
func (s *session) evict(keep int) {
	for len(s.loaded) > keep {
		last := s.loaded[len(s.loaded)-1]
		s.loaded = s.loaded[:len(s.loaded)-1]
		// What cannot be flushed is gone already, or with the connection.
		_ = last.close()
		_ = s.flush(last.handle.Handle)
	}
}

// use returns the key's handle, loading it if it is in no slot.
func (s *session) use(k *Key) (tpm2.AuthHandle, error) {
	for i, l := range s.loaded {
		if l.key == k || bytes.Equal(l.key.Blob, k.Blob) && l.key.auth == k.auth {
			copy(s.loaded[1:i+1], s.loaded[:i])
			s.loaded[0] = l
			return l.handle, nil
		}
	}
	s.evict(slots - 1)
	r, err := tpm2.Load{ParentHandle: s.parent(), InPrivate: k.private, InPublic: tpm2.New2B(*k.area)}.Execute(s.link)
	if err != nil {
		return tpm2.AuthHandle{}, fmt.Errorf("load key: %w", err)
	}
	if !bytes.Equal(r.Name.Buffer, k.Name) {
		return tpm2.AuthHandle{}, errors.Join(errSwapped, s.flush(r.ObjectHandle))
	}
	auth, end, err := tpm2.HMACSession(s.link, tpm2.TPMAlgSHA256, 16, s.salted(tpm2.Auth(k.auth[:]))...)
	if err != nil {
		return tpm2.AuthHandle{}, errors.Join(fmt.Errorf("start session: %w", err), s.flush(r.ObjectHandle))
	}
	handle := tpm2.AuthHandle{Handle: r.ObjectHandle, Name: r.Name, Auth: auth}
	s.loaded = append([]*loaded{{handle, k, end}}, s.loaded...)
	return handle, nil
}
