package harden

import "golang.org/x/sys/unix"

// auditArch is how the kernel names this architecture's own system calls.
const auditArch = unix.AUDIT_ARCH_AARCH64
