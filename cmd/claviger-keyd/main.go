// Command claviger-keyd is the key process. The supervisor starts it with the
// server's socket as descriptor 3 and that of claviger-unseal as 4; it takes
// the root key, answers the server, and ends when the server has gone.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keyd"
)

func main() {
	var o keyd.Options
	var algorithm string
	var size, batch int
	var twin bool
	flag.Func("others", "uids of the server and of claviger-unseal, with commas between", o.SetOthers)
	flag.Func("relax", "protective measures that may fail, with commas between; for development only", o.SetRelax)
	flag.IntVar(&o.ArenaSize, "arena", 0, "bytes of secret memory (default 4 MiB)")
	flag.StringVar(&algorithm, "measure", "", "measure this algorithm on a key that dies at the end, print the rates as JSON, and exit")
	flag.IntVar(&size, "size", 64, "with -measure: bytes of an item")
	flag.IntVar(&batch, "batch", 1, "with -measure: items of a batch")
	flag.BoolVar(&twin, "twin", false, "stand in for the key process in attempts on it: harden, hold no keys but a throw-away, report on descriptor 3")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "claviger-keyd: it takes flags only; the supervisor starts it")
		os.Exit(1)
	}
	if twin {
		if err := keyd.Twin(o); err != nil {
			fmt.Fprintln(os.Stderr, "claviger-keyd:", err)
			os.Exit(2)
		}
		return
	}
	if err := run(o, algorithm, size, batch); err != nil {
		fmt.Fprintln(os.Stderr, "claviger-keyd:", err)
		os.Exit(2)
	}
}

func run(o keyd.Options, algorithm string, size, batch int) error {
	if algorithm == "" {
		return keyd.Main(o)
	}
	a, err := claviger.ParseAlgorithm(algorithm)
	if err != nil {
		return err
	}
	rate, err := keyd.Measure(a, size, batch, 500*time.Millisecond)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(rate)
}
