package tpmd_test

import (
	"fmt"
	"os"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/tpm/tpmtest"
)

// program is the path of claviger-tpmd.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "tpmd")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if program, err = custodytest.BuildProgram(dir, "claviger-tpmd", "CGO_ENABLED=0"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// start returns a client of a real process over the TPM.
func start(t testing.TB, s *tpmtest.TPM) (*custody.Client, *custodytest.Child) {
	t.Helper()
	child := &custodytest.Child{Path: program, Args: []string{"-device", s.Device()}}
	c := custody.New(custody.Config{Source: child, Device: true})
	t.Cleanup(child.Close)
	t.Cleanup(c.Close)
	return c, child
}

func TestSuite(t *testing.T) {
	t.Parallel()
	custodytest.RunDevice(t, custodytest.Device{
		Kind: claviger.TPM,
		Open: func(t *testing.T) *custody.Client {
			c, _ := start(t, tpmtest.Start(t))
			return c
		},
		Algorithms: []claviger.Algorithm{
			claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha256",
			claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512,
		},
		// The store is all there is to overwrite: the TPM holds no key of its
		// own. What else a blob could become is tried in package tpm.
		Overwrite: func(t *testing.T, victim, other custodytest.Key) custody.Material {
			m := victim.Material
			m.Blob = other.Blob
			return m
		},
	})
}
