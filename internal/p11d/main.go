//go:build cgo

package p11d

import (
	claviger "claviger.dev"
)

// Main runs the process until its peer has gone.
func Main(o Options) error {
	return claviger.Errorf(claviger.Unavailable, "the device process is being built", "wait")
}
