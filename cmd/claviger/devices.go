package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/server"
	"claviger.dev/internal/supervise"
)

// deviceProcesses adds the processes of the devices that the configuration
// names to what the supervisor runs.
func deviceProcesses(run *supervise.Config, cfg server.Config) error {
	if cfg.TPM.Device != "" {
		if err := present(run.BinDir, "claviger-tpmd", "tpm.device", "run 'make build' and install it beside claviger"); err != nil {
			return err
		}
		run.Devices = append(run.Devices, supervise.Device{Name: "tpm", Program: "claviger-tpmd", Args: []string{"-device", cfg.TPM.Device}})
		run.UnsealArgs = append(run.UnsealArgs, "--tpm", cfg.TPM.Device)
	}
	if cfg.PKCS11.URI == "" {
		return nil
	}
	if err := present(run.BinDir, "claviger-p11d", "pkcs11.uri", "it needs a C compiler: install gcc and the C library's headers, run 'make build', and install it beside claviger"); err != nil {
		return err
	}
	d := supervise.Device{Name: "p11", Program: "claviger-p11d", Args: []string{"-uri", cfg.PKCS11.URI}}
	for _, variable := range cfg.PKCS11.Variables() {
		d.Args = append(d.Args, "-env", variable)
	}
	if name := cfg.PKCS11.PINCredential; name != "" {
		d.Credential = filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), name)
		if !filepath.IsAbs(d.Credential) || !fileExists(d.Credential) {
			return usagef("the credential %q with the PIN (pkcs11.pin_credential) is not there: start it from systemd with LoadCredentialEncrypted=%s", name, name)
		}
		d.Args = append(d.Args, "-pin-fd", "4")
	}
	token := d
	token.Name, token.Args = "", append([]string{"-unseal"}, d.Args...)
	run.Devices, run.Token = append(run.Devices, d), &token
	return nil
}

func present(dir, program, key, hint string) error {
	if fileExists(filepath.Join(dir, program)) {
		return nil
	}
	return &usageError{msg: fmt.Sprintf("the configuration has %s, and %s is not in %s", key, program, dir), hint: hint}
}

// deviceFDs are the descriptors of the devices' control sockets; -1 where the
// server has no such device.
type deviceFDs struct{ tpm, p11 int }

// deviceClients are the custodians of a server beside its key process.
type deviceClients map[claviger.Custodian]*custody.Client

// deviceWait is the longest wait for a use of a device, and the silence after
// which its process counts as hung. Devices are slow, and hidden behind
// modules and networks that may be slower.
const deviceWait = 10 * time.Second

// open takes the control sockets that the supervisor passed.
func (fds deviceFDs) open(log *slog.Logger) (deviceClients, error) {
	clients := deviceClients{}
	for kind, fd := range map[claviger.Custodian]int{claviger.TPM: fds.tpm, claviger.P11: fds.p11} {
		if fd < 0 {
			continue
		}
		source, err := supervise.FromSupervisor(uintptr(fd))
		if err != nil {
			clients.close()
			return nil, usagef("%v: start it with 'claviger up'", err)
		}
		clients[kind] = custody.New(custody.Config{Source: source, Log: log.With("custodian", kind), Timeout: deviceWait, Device: true})
	}
	return clients, nil
}

// all is what the door gets of them.
func (d deviceClients) all() map[claviger.Custodian]keeper.Device {
	devices := map[claviger.Custodian]keeper.Device{}
	for kind, c := range d {
		devices[kind] = c
	}
	return devices
}

func (d deviceClients) close() {
	for _, c := range d {
		c.Close()
	}
}
