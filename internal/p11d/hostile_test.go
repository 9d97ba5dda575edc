//go:build cgo

package p11d_test

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/p11"
)

// bound is a blob as it is of a key that was bound: whoever can write to the
// store can make one, since nothing in it is secret.
func bound(b frames.Binding, public []byte, uri string) []byte {
	out := binary.BigEndian.AppendUint16([]byte{'b'}, uint16(len(public)))
	out = append(append(out, public...), uri...)
	sum := sha256.Sum256(append(b.Append([]byte("claviger p11 blob 1\x00")), out...))
	return append(out, sum[:]...)
}

// TestForgedReference has the store name, as a key that others made, by its id
// alone, the key of another version and that of a root slot.
func TestForgedReference(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	m, made := generate(t, c, claviger.ECDSAP256)
	talk := unseal(t, k)
	wrapped, reference, err := p11.Wrap(talk, make([]byte, p11.SecretSize))
	must(t, err)
	byID := func(reference string) string {
		u, err := p11.ParseURI(reference)
		must(t, err)
		return (&p11.URI{ID: u.ID}).String()
	}
	mine := custodytest.Binding(claviger.ECDSAP256, claviger.Generated)
	forged := custody.Material{Binding: mine, Blob: bound(mine, made.Public, byID(made.Reference)), Fingerprint: made.Fingerprint}
	if sigs, err := c.Sign(t.Context(), forged, [][]byte{[]byte("x")}, false); err == nil {
		t.Errorf("another version's key made %d signatures under a forged reference", len(sigs))
	}
	root := custodytest.Binding(claviger.AES256GCM, claviger.Generated)
	forged = custody.Material{Binding: root, Blob: bound(root, nil, byID(reference))}
	if _, err := c.Open(t.Context(), forged, []custody.Sealed{{Sealed: wrapped}}); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("the key of a root slot under a forged reference: %v, want denied", err)
	}
	if kept, err := c.Destroy(t.Context(), forged); err != nil || !kept {
		t.Errorf("destroy a root slot's key: kept %v, %v", kept, err)
	}
	if _, err := p11.Unwrap(talk, reference, wrapped); err != nil {
		t.Errorf("the root slot does not open any more: %v", err)
	}
	if _, err := c.Sign(t.Context(), m, [][]byte{[]byte("x")}, false); err != nil {
		t.Errorf("the right reference: %v", err)
	}
}
