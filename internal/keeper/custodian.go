package keeper

import (
	"context"
	"slices"
	"strings"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
)

// holder returns the custodian of a kind.
func (k *Keeper) holder(kind claviger.Custodian) (Holder, error) {
	if kind == claviger.Soft {
		return k.cfg.Custodian, nil
	}
	return k.device(kind)
}

// device returns the device of a kind.
func (k *Keeper) device(kind claviger.Custodian) (Device, error) {
	if d := k.cfg.Devices[kind]; d != nil {
		return d, nil
	}
	return nil, claviger.Errorf(claviger.Unavailable, "this server has no custodian of kind "+string(kind),
		"configure the device, or use the server that has it")
}

// kinds are the custodians that this server has, the key process first.
func (k *Keeper) kinds() []claviger.Custodian {
	list := []claviger.Custodian{claviger.Soft}
	for _, kind := range []claviger.Custodian{claviger.TPM, claviger.P11} {
		if k.cfg.Devices[kind] != nil {
			list = append(list, kind)
		}
	}
	return list
}

// checkCustodian refuses a custodian that could never hold the key.
func checkCustodian(req CreateKey) (claviger.Custodian, error) {
	switch req.Custodian {
	case "", claviger.Soft:
		if req.Reference != "" {
			return "", claviger.Errorf(claviger.Invalid, "only a key of a PKCS#11 device can be bound", "name the custodian p11, or leave the reference out")
		}
		return claviger.Soft, nil
	case claviger.TPM, claviger.P11:
	default:
		return "", claviger.Errorf(claviger.Invalid, "there is no such custodian", "use soft, tpm or p11")
	}
	switch {
	case req.ForImport:
		return "", errImportDevice
	case req.Reference == "":
	case req.Custodian != claviger.P11:
		return "", claviger.Errorf(claviger.Invalid, "only a key of a PKCS#11 device can be bound", "name the custodian p11, or leave the reference out")
	case len(req.Reference) > maxReference || !strings.HasPrefix(req.Reference, "pkcs11:"):
		return "", claviger.Errorf(claviger.Invalid, "the reference is no PKCS#11 URI", "write it as in RFC 7512, such as pkcs11:object=name;type=private")
	case strings.Contains(req.Reference, "pin-"):
		return "", claviger.Errorf(claviger.Invalid, "the reference carries a PIN or says where one is", "leave it out: the server's configuration says where the PIN is")
	}
	return req.Custodian, checkText("reference", req.Reference)
}

// maxReference bounds a reference, in bytes.
const maxReference = claviger.MaxTextLength

var errImportDevice = claviger.Errorf(claviger.Unsupported, "material is not imported into a device", "import it into the key process, or have the device make the key")

// make has the custodian of a key make its next version, or bind what is in
// the device already.
func (k *Keeper) make(ctx context.Context, key *claviger.Key, number uint32, reference string) (custody.Made, error) {
	b := bindingOf(key, number, claviger.Generated)
	if key.Custodian == claviger.Soft {
		return k.cfg.Custodian.Generate(ctx, b)
	}
	d, err := k.device(key.Custodian)
	if err != nil {
		return custody.Made{}, err
	}
	var made custody.Made
	if reference != "" {
		made, err = d.Bind(ctx, b, reference)
	} else {
		if err := offers(ctx, d, key.Algorithm); err != nil {
			return custody.Made{}, err
		}
		made, err = d.Generate(ctx, b)
	}
	made.Generation = frames.DeviceGeneration // no root of ours wraps it, whatever the device says
	made.Reference = printable(made.Reference)
	if made.Level != "" {
		made.Level = worse(made.Level, claviger.Hardware) // its own word: more is for evidence to show
	}
	return made, err
}

// offers refuses an algorithm that the device does not make keys of.
func offers(ctx context.Context, d Device, alg claviger.Algorithm) error {
	what, err := d.Device(ctx)
	if err != nil || slices.Contains(what.Algorithms, alg) {
		return err
	}
	names := make([]string, len(what.Algorithms))
	for i, a := range what.Algorithms {
		names[i] = string(a)
	}
	return claviger.Errorf(claviger.Unsupported, "the device does not offer "+string(alg), "it offers "+strings.Join(names, ", "))
}

// unload has a custodian forget a version that was destroyed.
func (k *Keeper) unload(ctx context.Context, kind claviger.Custodian, m custody.Material) {
	h, err := k.holder(kind)
	if err == nil {
		err = h.Unload(ctx, m)
	}
	if err != nil {
		// Nothing asks the custodian to use the version any more, and a key
		// process forgets it at its next restart.
		k.cfg.Log.Warn("unload destroyed version", "key", m.Binding.KeyID, "version", m.Binding.Version, "error", err)
	}
}

// Custodians reports every custodian of this server, away or not.
func (k *Keeper) Custodians(ctx context.Context, by claviger.Principal) ([]CustodianReport, error) {
	var list []CustodianReport
	c := change{op: claviger.ManageServer, action: "server.custodians"}
	err := k.administer(ctx, by, c, func(ctx context.Context, _ *claviger.Key, _ *audit.Record) error {
		list = k.custodians(ctx)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// custodians asks all of them at once, so that one that is away costs its own
// timeout alone.
func (k *Keeper) custodians(ctx context.Context) []CustodianReport {
	kinds := k.kinds()
	list := make([]CustodianReport, len(kinds))
	done := make(chan struct{}, len(kinds))
	for i, kind := range kinds {
		go func() {
			list[i] = k.askCustodian(ctx, kind)
			done <- struct{}{}
		}()
	}
	for range kinds {
		<-done
	}
	return list
}

// toldBy is a device in texts that can be shown, signed and sent on, and with
// algorithms that there are: one device's garbage is no other's trouble.
func toldBy(d claviger.Device) claviger.Device {
	for _, text := range []*string{&d.Manufacturer, &d.Model, &d.Serial, &d.Firmware} {
		*text = printable(*text)
	}
	d.Algorithms = slices.DeleteFunc(claviger.Algorithms(), func(a claviger.Algorithm) bool { return !slices.Contains(d.Algorithms, a) })
	return d
}

func (k *Keeper) askCustodian(ctx context.Context, kind claviger.Custodian) CustodianReport {
	ctx, cancel := context.WithTimeout(ctx, systemDeadline)
	defer cancel()
	r := CustodianReport{Device: claviger.Device{Kind: kind}}
	h, err := k.holder(kind)
	var d claviger.Device
	if err == nil {
		d, err = h.Device(ctx)
	}
	if err != nil {
		r.Trouble = safeText(outward(err))
		return r
	}
	r.Device = toldBy(d)
	r.Kind = kind
	if kind == claviger.Soft {
		e, err := k.cfg.Custodian.Evidence(ctx)
		if err != nil {
			r.Trouble = safeText(outward(err))
		}
		r.PID, r.Level = e.PID, e.Level
	}
	return r
}
