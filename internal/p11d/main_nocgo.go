//go:build !cgo

package p11d

import (
	claviger "claviger.dev"
)

// Main says that this build cannot load a module.
func Main(Options) error {
	return claviger.Errorf(claviger.Unsupported, "this claviger-p11d was built without a C compiler and cannot load PKCS#11 modules",
		"install gcc and build again with CGO_ENABLED=1 go build ./cmd/claviger-p11d (make build does so where it finds one)")
}
