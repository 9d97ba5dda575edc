// Command claviger-keyd is the key process. The supervisor starts it with the
// server's socket as descriptor 3 and that of claviger-unseal as 4; it takes
// the root key, answers the server, and ends when the server has gone.
package main

import (
	"flag"
	"fmt"
	"os"

	"claviger.dev/internal/keyd"
)

func main() {
	var o keyd.Options
	flag.Func("others", "uids of the server and of claviger-unseal, with commas between", o.SetOthers)
	flag.Func("relax", "protective measures that may fail, with commas between; for development only", o.SetRelax)
	flag.IntVar(&o.ArenaSize, "arena", 0, "bytes of secret memory (default 4 MiB)")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "claviger-keyd: it takes flags only; the supervisor starts it")
		os.Exit(1)
	}
	if err := keyd.Main(o); err != nil {
		fmt.Fprintln(os.Stderr, "claviger-keyd:", err)
		os.Exit(2)
	}
}
