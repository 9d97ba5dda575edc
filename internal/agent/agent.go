// Package agent holds the identity key of a host where it cannot be carried
// away: in a TPM, in a PKCS#11 token, or in a key process of its own.
//
// It owns the agent's directory and the custodian that runs as this process's
// child, and gives the key as a crypto.Signer and as what the server is shown
// of it. It promises that the private key never enters this process, and that
// the directory is written whole or not at all. It decides nothing about
// levels: the server does.
package agent

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/supervise"
	"claviger.dev/pubkey"
)

// DefaultTPM is the TPM of the host, through the kernel's resource manager.
const DefaultTPM = "/dev/tpmrm0"

// Settings say where the key may be made.
type Settings struct {
	Custodian claviger.Custodian // the only one to use; empty takes the first that works of TPM, P11 and Soft
	TPM       string             // "/dev/tpmrm0", or "unix:" and the path of a software TPM's socket; DefaultTPM when empty
	PKCS11    string             // RFC 7512 URI; empty: no token
	Variables []string           // NAME=/absolute/path that the token's module reads, such as SOFTHSM2_CONF
	KeyUser   string             // account of the local key process, where root starts it; empty: that of the caller
	BinDir    string             // of the custodians' programs; empty is beside this program
}

// Passed is a custodian that was not taken.
type Passed struct {
	Custodian claviger.Custodian
	Err       error
}

// Agent is the identity key with the custodian that holds it. It is a
// crypto.Signer and a client.Holder.
type Agent struct {
	dir      string // of the state
	state    state
	half     pubkey.Key
	child    *supervise.Child
	keys     *custody.Client
	unplaced bool // dir is a working directory: Close removes it
}

// patience bounds the wait for a custodian: the first start of a TPM makes its
// storage key.
const patience = 30 * time.Second

// Make makes a key in the first custodian that works. dir must not exist; it
// does only once Keep has put it in place. Of each custodian that was passed
// over it says why.
func Make(ctx context.Context, dir string, s Settings) (*Agent, []Passed, error) {
	if _, err := os.Lstat(dir); err == nil {
		return nil, nil, claviger.Errorf(claviger.Conflict, "there is an agent in "+dir+" already", "renew it with 'claviger agent renew', or remove the directory to enrol anew")
	}
	if strings.Contains(s.PKCS11, "pin-value") {
		return nil, nil, claviger.Errorf(claviger.Invalid, "the URI holds a PIN", "name a file with pin-source=file:/path instead")
	}
	var passed []Passed
	for _, where := range []claviger.Custodian{claviger.TPM, claviger.P11, claviger.Soft} {
		if s.Custodian != "" && s.Custodian != where {
			continue
		}
		a, err := makeIn(ctx, dir, s, where)
		if err == nil {
			return a, passed, nil
		}
		passed = append(passed, Passed{where, err})
	}
	if len(passed) == 0 {
		return nil, nil, claviger.Errorf(claviger.Invalid, "there is no such custodian", "use tpm, p11 or soft")
	}
	return nil, passed, claviger.Errorf(claviger.Unavailable, "no custodian can hold the key", "see above why; 'claviger agent enroll --help' names what each needs")
}

// makeIn makes a key in one custodian, in a working directory beside dir.
func makeIn(ctx context.Context, dir string, s Settings, where claviger.Custodian) (*Agent, error) {
	st := state{Custodian: where}
	switch where {
	case claviger.Soft:
		st.User = s.KeyUser
	case claviger.TPM:
		if st.Device = s.TPM; st.Device == "" {
			st.Device = DefaultTPM
		}
		if _, err := os.Stat(strings.TrimPrefix(st.Device, "unix:")); err != nil {
			return nil, fmt.Errorf("there is no TPM: %w", err)
		}
	case claviger.P11:
		if st.Device = s.PKCS11; st.Device == "" {
			return nil, errors.New("no token is named: give --pkcs11")
		}
		st.Variables = s.Variables
	}
	work, err := workDir(dir)
	if err != nil {
		return nil, err
	}
	a := &Agent{dir: work, state: st, unplaced: true}
	if err := a.make(ctx, s.BinDir); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// make starts the custodian and makes the key.
func (a *Agent) make(ctx context.Context, binDir string) error {
	if err := a.start(ctx, binDir); err != nil {
		return err
	}
	a.state.Key = frames.Binding{
		KeyID: claviger.NewID(time.Now()), Version: 1, Algorithm: claviger.ECDSAP256,
		Recipe: claviger.PlainRecipe, Origin: claviger.Generated,
	}
	made, err := a.keys.Generate(ctx, a.state.Key)
	if err != nil {
		return a.explain(err)
	}
	if a.half, err = pubkey.Parse(claviger.ECDSAP256, made.Public); err != nil {
		return err
	}
	if a.half.Fingerprint() != made.Fingerprint {
		return errors.New("the custodian's fingerprint is not that of its public key")
	}
	a.state.Public, a.state.Blob, a.state.Level = made.Public, made.Blob, made.Level
	a.state.About, err = a.keys.Device(ctx)
	a.state.About.Algorithms = nil // of no interest here
	return a.explain(err)
}

// Open starts the custodian of the agent in the directory.
func Open(ctx context.Context, dir, binDir string) (*Agent, error) {
	st, err := load(dir)
	if err != nil {
		return nil, err
	}
	a := &Agent{dir: dir, state: st}
	if a.half, err = pubkey.Parse(st.Key.Algorithm, st.Public); err != nil {
		return nil, damaged().Wrap(err)
	}
	if err := a.start(ctx, binDir); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// start starts the custodian.
func (a *Agent) start(ctx context.Context, binDir string) (err error) {
	cfg := supervise.ChildConfig{BinDir: binDir}
	switch a.state.Custodian {
	case claviger.TPM:
		cfg.Program, cfg.Args = "claviger-tpmd", []string{"-device", a.state.Device}
	case claviger.P11:
		cfg.Program, cfg.Args = "claviger-p11d", []string{"-uri", a.state.Device}
		for _, v := range a.state.Variables {
			cfg.Args = append(cfg.Args, "-env", v)
		}
	default:
		cfg.Program, cfg.Unseal = "claviger-keyd", filepath.Join(a.dir, unsealDir)
		cfg.Args = []string{"-others", strconv.Itoa(os.Geteuid())}
		if cfg.User, err = keyUser(a.state.User); err != nil {
			return err
		}
	}
	if a.child, err = supervise.StartChild(ctx, cfg); err != nil {
		return claviger.Errorf(claviger.Unavailable, "the custodian does not start: "+err.Error(), "install "+cfg.Program+" beside claviger, and see that its device is there").Wrap(err)
	}
	a.keys = custody.New(custody.Config{Source: a.child, Timeout: patience, Device: a.state.Custodian != claviger.Soft})
	return nil
}

// keyUser is the account of the local key process. With one of its own, this
// uid cannot reach into it; without, or when not root starts it, the key counts
// as exposed.
func keyUser(name string) (supervise.User, error) {
	if name == "" || os.Geteuid() != 0 {
		return supervise.User{}, nil
	}
	u, err := supervise.LookupUser(name)
	if err != nil {
		return u, claviger.Errorf(claviger.Invalid, "there is no account "+name, "make it, or leave --key-user out").Wrap(err)
	}
	return u, nil
}

// explain says why the custodian ended, where it did.
func (a *Agent) explain(err error) error {
	if err == nil || a.child == nil {
		return err
	}
	if ended := a.child.Err(); ended != nil {
		return claviger.Errorf(claviger.Unavailable, "the custodian ended: "+ended.Error(), "see to its device and try again").Wrap(err)
	}
	return err
}

// Close ends the custodian. A key that was not kept is forgotten.
func (a *Agent) Close() error {
	var errs []error
	if a.keys != nil {
		a.keys.Close()
	}
	if a.child != nil {
		errs = append(errs, a.child.Close())
	}
	if a.unplaced {
		errs = append(errs, os.RemoveAll(a.dir))
	}
	return errors.Join(errs...)
}

// Public implements crypto.Signer.
func (a *Agent) Public() crypto.PublicKey { return a.half.Std() }

// Sign implements crypto.Signer for SHA-256 digests.
func (a *Agent) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, claviger.Errorf(claviger.Invalid, "the agent's key signs SHA-256 digests alone", "negotiate ECDSA with P-256 and SHA-256")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	signatures, err := a.keys.Sign(ctx, a.material(), [][]byte{digest}, true)
	if err != nil {
		return nil, a.explain(err)
	}
	return signatures[0], nil
}

func (a *Agent) material() custody.Material {
	return custody.Material{Binding: a.state.Key, Blob: a.state.Blob, Fingerprint: a.half.Fingerprint()}
}

// Check has the key sign, and checks what came. It is ErrForeign when the
// device answers that it does not hold the key, or signs with another.
func (a *Agent) Check(ctx context.Context) error {
	text := []byte("claviger agent check")
	signatures, err := a.keys.Sign(ctx, a.material(), [][]byte{text}, false)
	if err == nil && a.half.Verify(text, signatures[0], pubkey.ASN1) {
		return nil
	}
	switch claviger.CodeOf(err) {
	case "", claviger.NotFound, claviger.Internal:
	case claviger.Invalid: // of a token it is about how the token is named
		if a.state.Custodian == claviger.P11 {
			return err
		}
	default:
		return a.explain(err)
	}
	return claviger.Errorf(claviger.Denied, "this device does not hold the agent's key",
		"the directory comes from another host, or the device was cleared: enrol this host with a code of its own").Wrap(errors.Join(ErrForeign, err))
}

// ErrForeign says that the device does not hold the agent's key: the directory
// was copied from another host, or the device was replaced or cleared.
var ErrForeign = errors.New("not a key of this device")

// Claim implements client.Holder.
func (a *Agent) Claim(ctx context.Context) (*pb.BoundDevice, error) {
	d := a.state.About
	claim := &pb.BoundDevice{
		Custodian: string(a.state.Custodian), Manufacturer: d.Manufacturer, Model: d.Model, Serial: d.Serial, Firmware: d.Firmware,
		Software: d.Software, Level: string(a.state.Level),
	}
	if a.state.Custodian != claviger.TPM {
		return claim, nil
	}
	e, err := a.keys.Endorse(ctx)
	if err != nil {
		return nil, a.explain(err)
	}
	claim.AkPublic, claim.EkPublic, claim.EkCertificates = e.AKPublic, e.EKPublic, e.EKCertificates
	return claim, nil
}

// Answer implements client.Holder.
func (a *Agent) Answer(ctx context.Context, c *pb.BindingChallenge) (*pb.BindingProof, error) {
	text := "claviger binding 1\x00" + c.Id + "\x00" + string(c.Nonce)
	signatures, err := a.keys.Sign(ctx, a.material(), [][]byte{[]byte(text)}, false)
	if err != nil {
		return nil, a.explain(err)
	}
	proof := &pb.BindingProof{Id: c.Id, Signature: signatures[0]}
	if a.state.Custodian != claviger.TPM {
		return proof, nil
	}
	if proof.Activated, err = a.keys.Activate(ctx, c.Credential, c.Encrypted); err != nil {
		return nil, a.explain(err)
	}
	attestation, err := a.keys.Attest(ctx, a.material(), c.Nonce)
	if err != nil {
		return nil, a.explain(err)
	}
	proof.KeyPublic, proof.Attest, proof.AttestSignature = attestation.KeyPublic, attestation.Attest, attestation.Signature
	return proof, nil
}

// Renew renews the certificate and notes what the server says of the binding.
func (a *Agent) Renew(ctx context.Context) error {
	answer, err := client.RenewBound(ctx, ProfileDir(a.dir), a)
	if err != nil {
		return err
	}
	return a.note(answer.Binding)
}
