//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled reports whether points can kill the process in this build.
const Enabled = true

// countdown is process-wide on purpose: the points are places in the program,
// and this file is compiled into tests alone.
var countdown atomic.Int64

var armed = func() Name {
	name, count, _ := strings.Cut(os.Getenv("CLAVIGER_FAILPOINT"), "=")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		n = 1
	}
	countdown.Store(n)
	return Name(name)
}()

// Hit kills the process with SIGKILL when CLAVIGER_FAILPOINT names the point
// ("name" or "name=count") and it is reached for the count-th time.
func Hit(name Name) {
	if name != armed || countdown.Add(-1) != 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way; nothing after the point may run
}
