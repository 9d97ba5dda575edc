// Command claviger-tpmd is the custodian over a TPM 2.0. The supervisor starts
// it with the server's socket as descriptor 3; it answers the server, and ends
// when the server has gone.
package main

import (
	"flag"
	"fmt"
	"os"

	"claviger.dev/internal/tpmd"
)

func main() {
	device := flag.String("device", "/dev/tpmrm0", "the TPM: a device file, or unix:/path of a software TPM's socket")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "claviger-tpmd: it takes flags only; the supervisor starts it")
		os.Exit(1)
	}
	if err := tpmd.Main(*device); err != nil {
		fmt.Fprintln(os.Stderr, "claviger-tpmd:", err)
		os.Exit(2)
	}
}
