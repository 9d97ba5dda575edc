package tpmd

import (
	"log/slog"
	"os"

	"claviger.dev/internal/harden"
	"claviger.dev/internal/tpm"
)

// framesFD is the descriptor of the server's socket.
const framesFD = 3

// Main hardens this process and serves the device until the server has gone.
// It is called once, first thing.
func Main(path string) error {
	report, err := harden.Server()
	if err != nil {
		return err
	}
	device, err := tpm.Open(path)
	if err != nil {
		return err
	}
	defer device.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	return New(device, report.Measures, log).Serve(os.NewFile(framesFD, "frames"))
}
