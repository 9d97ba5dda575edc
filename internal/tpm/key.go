package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"

	claviger "claviger.dev"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/pubkey"
)

// maxBlob is the most bytes of a key's blob.
const maxBlob = 4096

// Key is a key of the device, as its blob holds it: the device has it in a
// slot only while it is used.
type Key struct {
	Blob        []byte // public area and what the TPM encrypted to itself
	Area        []byte // TPMT_PUBLIC
	Algorithm   claviger.Algorithm
	Public      []byte // raw public key; empty for a symmetric key
	Fingerprint claviger.Fingerprint
	Name        []byte // TPM 2.0 part 1, 16

	auth    [32]byte
	area    *tpm2.TPMTPublic
	private tpm2.TPM2BPrivate
	verify  pubkey.Key // zero for a symmetric key
}

var (
	errBlob    = claviger.Errorf(claviger.Invalid, "the blob is no TPM key of Claviger's", "use the blob as it was made")
	errSwapped = claviger.Errorf(claviger.Internal, "the TPM holds another key than the blob says", "nothing was signed; attest the key, and treat the TPM as suspect")
	errWrong   = claviger.Errorf(claviger.Internal, "the TPM's signature is not the key's", "the signature was dropped; attest the key, and treat the TPM as suspect")
)

// Parse reads the blob of a key that is used with the authorisation. It asks
// nothing of the device, which decides about the blob when the key is used.
func Parse(blob []byte, auth [32]byte) (*Key, error) {
	if len(blob) > maxBlob {
		return nil, errBlob
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](blob)
	if err != nil {
		return nil, errBlob
	}
	head := tpm2.Marshal(public)
	if !bytes.HasPrefix(blob, head) {
		return nil, errBlob
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](blob[len(head):])
	if err != nil || !bytes.Equal(tpm2.Marshal(private), blob[len(head):]) {
		return nil, errBlob
	}
	area, err := public.Contents()
	if err != nil {
		return nil, errBlob
	}
	k := &Key{Blob: bytes.Clone(blob), Area: tpm2.Marshal(area), auth: withoutZeros(auth), area: area, private: *private}
	if k.Algorithm, k.Public, k.Fingerprint, k.Name, err = attest.Describe(k.Area); err != nil {
		return nil, errBlob.Wrap(err)
	}
	if k.Algorithm.Asymmetric() {
		if k.verify, err = pubkey.Parse(k.Algorithm, k.Public); err != nil {
			return nil, errBlob.Wrap(err)
		}
	}
	return k, nil
}

// withoutZeros makes the zero bytes of an authorisation ones. A TPM cuts them
// off its end, and go-tpm cuts it at the first.
func withoutZeros(auth [32]byte) [32]byte {
	for i := range auth {
		auth[i] = max(auth[i], 1)
	}
	return auth
}

// Create makes a key that never leaves the device and is used with the
// authorisation only. An algorithm that the device lacks is
// claviger.Unsupported.
func (d *Device) Create(a claviger.Algorithm, auth [32]byte) (*Key, error) {
	template, err := keyTemplate(a)
	if err != nil {
		return nil, err
	}
	auth = withoutZeros(auth)
	var k *Key
	err = d.do(func(s *session) error {
		k, err = s.create(template, auth)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := attest.CheckKey(k.Area); err != nil {
		return nil, err
	}
	if k.Algorithm != a {
		return nil, errSwapped
	}
	return k, d.Check(k)
}

func (s *session) create(template tpm2.TPMTPublic, auth [32]byte) (*Key, error) {
	if _, err := (tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{Type: template.Type, Parameters: template.Parameters}}).Execute(s.link); err != nil {
		if errors.Is(err, errLost) {
			return nil, err
		}
		return nil, errAlgorithm
	}
	s.evict(slots - 1)
	r, err := tpm2.Create{
		ParentHandle: s.parent(),
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth[:]}}},
		InPublic:     tpm2.New2B(template),
	}.Execute(s.link)
	if err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	return Parse(append(tpm2.Marshal(r.OutPublic), tpm2.Marshal(r.OutPrivate)...), auth)
}

// Check has the device use the key, and so shows that the blob is of this
// device, that the authorisation is the key's, and that the key is the one
// whose public half the blob shows.
func (d *Device) Check(k *Key) error {
	if !k.Algorithm.Asymmetric() {
		_, err := d.MAC(k, [][]byte{[]byte("claviger tpm check 1")})
		return err
	}
	digest := make([]byte, k.Algorithm.Hash().Size())
	_, _ = rand.Read(digest)
	_, err := d.Sign(k, [][]byte{digest})
	return err
}

// Sign signs digests of the algorithm's hash, and checks each signature with
// the key's public half before it returns any. ECDSA signatures are ASN.1.
func (d *Device) Sign(k *Key, digests [][]byte) ([][]byte, error) {
	if !k.Algorithm.Asymmetric() {
		return nil, errOperation
	}
	for _, digest := range digests {
		if len(digest) != k.Algorithm.Hash().Size() {
			return nil, claviger.Errorf(claviger.Invalid, "a digest has the length of the algorithm's hash", "send the digest by the algorithm's own hash")
		}
	}
	signatures := make([][]byte, len(digests))
	made := make(chan int, len(digests))
	right := make(chan bool, 1)
	check := func() {
		all := true
		for i := range made {
			all = all && k.verify.VerifyDigest(digests[i], signatures[i], pubkey.ASN1)
		}
		right <- all
	}
	if len(digests) > 1 {
		go check() // the device signs the next meanwhile
	}
	err := d.each(len(digests), func(s *session, i int) error {
		sig, err := s.sign(k, digests[i])
		if err == nil {
			signatures[i] = sig
			made <- i
		}
		return err
	})
	close(made)
	if len(digests) <= 1 {
		check()
	}
	if all := <-right; err == nil && !all {
		err = errWrong
	}
	if err != nil {
		return nil, err
	}
	return signatures, nil
}

// each calls f for every index in turn, and lets others have the device now
// and then.
func (d *Device) each(n int, f func(s *session, i int) error) error {
	for i := 0; i < n; {
		err := d.do(func(s *session) error {
			for start := time.Now(); i < n && time.Since(start) < turn; i++ {
				if err := f(s, i); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxBuffer is the most bytes that every TPM takes in one parameter.
const maxBuffer = 1024

// MAC computes the code of each input.
func (d *Device) MAC(k *Key, inputs [][]byte) ([][]byte, error) {
	if k.Algorithm.Protects() != claviger.MAC {
		return nil, errOperation
	}
	codes := make([][]byte, len(inputs))
	err := d.each(len(inputs), func(s *session, i int) (err error) {
		codes[i], err = s.mac(k, inputs[i])
		if err == nil && len(codes[i]) != k.Algorithm.Hash().Size() {
			err = errWrong
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return codes, nil
}

func (s *session) mac(k *Key, input []byte) ([]byte, error) {
	handle, err := s.use(k)
	if err != nil {
		return nil, err
	}
	if len(input) > maxBuffer {
		return s.longMAC(k, handle, input)
	}
	b := append2B(make([]byte, 0, 2+len(input)+2), input)
	r, err := s.command(tpm2.TPMCCHMAC, handle, binary.BigEndian.AppendUint16(b, uint16(hashOf(k.Algorithm.Hash()))))
	if err != nil {
		return nil, fmt.Errorf("compute MAC: %w", err)
	}
	var code cryptobyte.String
	if !r.ReadUint16LengthPrefixed(&code) || !r.Empty() {
		return nil, errForm
	}
	return code, nil
}

// longMAC computes the code of an input in parts. The sequence takes a slot.
func (s *session) longMAC(k *Key, handle tpm2.AuthHandle, input []byte) ([]byte, error) {
	s.evict(1) // the key itself was used last
	once := make([]byte, 16)
	_, _ = rand.Read(once)
	start, err := tpm2.HmacStart{Handle: handle, Auth: tpm2.TPM2BAuth{Buffer: once}, HashAlg: hashOf(k.Algorithm.Hash())}.Execute(s.link)
	if err != nil {
		return nil, fmt.Errorf("start MAC: %w", err)
	}
	sequence := tpm2.AuthHandle{Handle: start.SequenceHandle, Auth: tpm2.PasswordAuth(once)}
	for len(input) > maxBuffer {
		if _, err := (tpm2.SequenceUpdate{SequenceHandle: sequence, Buffer: tpm2.TPM2BMaxBuffer{Buffer: input[:maxBuffer]}}).Execute(s.link); err != nil {
			return nil, errors.Join(fmt.Errorf("continue MAC: %w", err), s.flush(start.SequenceHandle))
		}
		input = input[maxBuffer:]
	}
	r, err := tpm2.SequenceComplete{SequenceHandle: sequence, Buffer: tpm2.TPM2BMaxBuffer{Buffer: input}, Hierarchy: tpm2.TPMRHNull}.Execute(s.link)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("complete MAC: %w", err), s.flush(start.SequenceHandle))
	}
	return r.Result.Buffer, nil
}

func hashOf(h crypto.Hash) tpm2.TPMAlgID {
	return map[crypto.Hash]tpm2.TPMAlgID{crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512}[h]
}
