//go:build cgo

package p11d

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/p11"
)

// How long one call of the module may take before it counts as hung, which
// ends the process: a thread in C cannot be ended alone.
const (
	useLimit  = 10 * time.Second
	makeLimit = 3 * time.Minute
	calmDown  = time.Second // between attempts to reach a token that is not there
)

// Handles of the module.
type (
	session = pkcs11.SessionHandle
	object  = pkcs11.ObjectHandle
)

// device is one token of one module.
type device struct {
	module *pkcs11.Ctx
	uri    *p11.URI
	final  bool              // try the PIN even when it is the last try
	hung   func(call string) // ends the process
	now    func() time.Time

	mu      sync.Mutex
	pin     pin
	current *link // nil until the token was reached
	links   uint64
	failed  time.Time // when reaching it last failed
	err     error     // and how
}

// link is the connection to a token for as long as it lasts. What it says of
// the token does not change.
type link struct {
	number     uint64
	slot       uint
	info       pkcs11.TokenInfo
	about      claviger.Device
	mechanisms map[uint]pkcs11.MechanismInfo
	idle       chan session // one for each core, and one for what is slow
	lost       atomic.Bool
}

// load loads the module. The token need not be there yet.
func load(o Options, hung func(string)) (*device, error) {
	uri, err := p11.ParseURI(o.URI)
	if err != nil {
		return nil, err
	}
	if uri.ModulePath == "" || uri.Object != "" || len(uri.ID) > 0 || uri.Type != "" {
		return nil, claviger.Errorf(claviger.Invalid, "the URI has to name a module and a token, and no object", "pkcs11:token=NAME?module-path=/path/to/module.so&pin-source=file:/path/to/pin")
	}
	path := o.Credential
	if path == "" {
		path = uri.PINFile
	}
	if _, err := os.Stat(uri.ModulePath); err != nil {
		return nil, claviger.Errorf(claviger.Unavailable, "the PKCS#11 module cannot be read", "install it, or correct module-path in the URI").Wrap(err)
	}
	module := pkcs11.New(uri.ModulePath)
	if module == nil {
		return nil, claviger.Errorf(claviger.Unavailable, "the PKCS#11 module cannot be loaded", "check that it is a module for this machine, and what libraries it needs (ldd)")
	}
	d := &device{module: module, uri: uri, final: o.FinalTry, hung: hung, now: time.Now, pin: pin{path: path, fd: o.PINDescriptor}}
	defer d.watch("C_Initialize", makeLimit)()
	if err := module.Initialize(); err != nil && code(err) != pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED {
		return nil, claviger.Errorf(claviger.Unavailable, "the PKCS#11 module does not start ("+name(err)+")", "check its configuration; -env passes its variables, such as SOFTHSM2_CONF").Wrap(err)
	}
	return d, nil
}

// watch ends the process unless the returned function is called in time.
func (d *device) watch(call string, limit time.Duration) (done func()) {
	t := time.AfterFunc(limit, func() { d.hung(call) })
	return func() { t.Stop() }
}

// reach returns the link to the token, and makes one if there is none.
func (d *device) reach() (*link, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != nil && !d.current.lost.Load() {
		return d.current, nil
	}
	if d.err != nil && d.now().Sub(d.failed) < calmDown {
		return nil, d.err
	}
	if d.current != nil {
		_ = d.module.CloseAllSessions(d.current.slot) // uses under way fail, and are not released
		d.current = nil
	}
	l, err := d.connect()
	if err != nil {
		d.failed, d.err = d.now(), tell(err)
		return nil, d.err
	}
	d.current, d.err = l, nil
	return l, nil
}

func (d *device) connect() (*link, error) {
	defer d.watch("connecting to the token", makeLimit)()
	slot, info, err := d.find()
	if err != nil {
		return nil, err
	}
	d.links++
	l := &link{number: d.links, slot: slot, info: info, mechanisms: d.list(slot), idle: make(chan session, runtime.GOMAXPROCS(0)+1)}
	l.about = d.describe(l)
	for range cap(l.idle) {
		s, err := d.module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			if len(l.idle) > 0 && code(err) == pkcs11.CKR_SESSION_COUNT {
				break // the token has fewer
			}
			return nil, fmt.Errorf("open session: %w", err)
		}
		l.idle <- s
	}
	if info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0 {
		s := <-l.idle
		l.idle <- s
		err := d.pin.login(info.Flags, d.final, func(pin string) error { return d.module.Login(s, pkcs11.CKU_USER, pin) })
		if err != nil {
			_ = d.module.CloseAllSessions(slot)
			return nil, err
		}
	}
	return l, nil
}

// list returns what the token can do; nothing when it does not say.
func (d *device) list(slot uint) map[uint]pkcs11.MechanismInfo {
	all := map[uint]pkcs11.MechanismInfo{}
	list, err := d.module.GetMechanismList(slot)
	if err != nil {
		return all
	}
	for _, m := range list {
		if about, err := d.module.GetMechanismInfo(slot, []*pkcs11.Mechanism{m}); err == nil {
			all[m.Mechanism] = about
		}
	}
	return all
}

// find returns the one slot whose token fits the URI.
func (d *device) find() (slot uint, info pkcs11.TokenInfo, err error) {
	slots, err := d.module.GetSlotList(true)
	if err != nil {
		return 0, info, fmt.Errorf("list slots: %w", err)
	}
	found := 0
	for _, s := range slots {
		t, err := d.module.GetTokenInfo(s)
		if err != nil || t.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 || !d.fits(s, t) {
			continue
		}
		slot, info, found = s, t, found+1
	}
	switch found {
	case 0:
		return 0, info, errNoToken
	case 1:
		return slot, info, nil
	}
	return 0, info, errTokens
}

func (d *device) fits(slot uint, t pkcs11.TokenInfo) bool {
	return (d.uri.Slot == nil || *d.uri.Slot == slot) && sameToken(d.uri, t)
}

// sameToken says whether a URI's token attributes fit. Modules pad with
// spaces.
func sameToken(u *p11.URI, t pkcs11.TokenInfo) bool {
	same := func(want, got string) bool { return want == "" || want == trim(got) }
	return same(u.Token, t.Label) && same(u.Serial, t.SerialNumber) && same(u.Model, t.Model) && same(u.Manufacturer, t.ManufacturerID)
}

func trim(s string) string { return strings.ToValidUTF8(strings.TrimRight(s, " \x00"), "?") }

// software lists what stands in a module's or token's manufacturer or model
// where no hardware is behind it.
var software = []string{"softhsm", "kryoptic", "mozilla", "nss", "p11-kit", "software", "soft token", "swtpm", "simulator", "emulator"}

func (d *device) describe(l *link) claviger.Device {
	about := claviger.Device{
		Kind: claviger.P11, Manufacturer: trim(l.info.ManufacturerID), Model: trim(l.info.Model), Serial: trim(l.info.SerialNumber),
		Firmware: fmt.Sprintf("%d.%d", l.info.FirmwareVersion.Major, l.info.FirmwareVersion.Minor),
	}
	texts := []string{about.Manufacturer, about.Model}
	if m, err := d.module.GetInfo(); err == nil {
		texts = append(texts, trim(m.ManufacturerID), trim(m.LibraryDescription))
	}
	if s, err := d.module.GetSlotInfo(l.slot); err == nil {
		texts = append(texts, trim(s.ManufacturerID), trim(s.SlotDescription))
		about.Software = s.Flags&pkcs11.CKF_HW_SLOT == 0 && strings.Contains(strings.ToLower(strings.Join(texts, " ")), "soft")
	}
	all := strings.ToLower(strings.Join(texts, "\n"))
	for _, word := range software {
		about.Software = about.Software || strings.Contains(all, word)
	}
	for _, a := range claviger.Algorithms() {
		if sch, ok := schemeOf(a); ok && sch.offered(l.mechanisms) {
			about.Algorithms = append(about.Algorithms, a)
		}
	}
	return about
}

// with runs f on a session of the token. A session that saw an error is not
// used again, since an operation may be left open in it.
func (d *device) with(f func(l *link, s session) error) error {
	l, err := d.reach()
	if err != nil {
		return err
	}
	s := <-l.idle
	err = f(l, s)
	switch {
	case err == nil || code(err) == 0:
	case isLost(err):
		l.lost.Store(true)
	default:
		_ = d.module.CloseSession(s)
		fresh, again := d.module.OpenSession(l.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if again != nil {
			l.lost.Store(true)
		} else {
			s = fresh
		}
	}
	l.idle <- s
	return err
}
