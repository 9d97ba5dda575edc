package tpm

import (
	claviger "claviger.dev"
)

// Probe attacks the key with all the authority that there is over it.
func (d *Device) Probe(k *Key, loud bool) ([]claviger.Attempt, error) { return nil, errUnfinished }

var errUnfinished = claviger.Errorf(claviger.Unavailable, "the probe cannot be used yet", "use a newer release")
