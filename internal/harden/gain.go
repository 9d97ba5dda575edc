package harden

// gain says what an attacker gains where a measure is not on.
func gain(name string) string {
	switch name {
	case Descriptors:
		return "a descriptor left open is a way out for keys, or a way in"
	case NoEnvironment:
		return "whatever the environment holds is readable in the process"
	case NoTracebacks:
		return "a crash prints arguments of functions to the error output"
	case NotDumpable:
		return "any process of the same uid reads the key process's memory and descriptors, or traces it"
	case NoCore:
		return "a crash writes memory to a core file"
	case ParentDeath:
		return "an orphaned key process keeps its keys in memory"
	case SecretPages:
		return "root, a debugger or a memory image reads the keys without running code in the key process"
	case SecretErasure:
		return "copies of used keys stay on the heap, where root can read them"
	case NoNewPrivs:
		return "code run in the key process can gain privileges through a set-user-ID program"
	case Landlock:
		return "one layer less: code run in the key process is kept from files by the system call filter alone"
	case Seccomp:
		return "code run in the key process can open files and sockets and send the keys away"
	case OwnUser:
		return "another process of the uid reads the files of the key process and can signal it"
	case NoCapabilities:
		return "code run in the key process has the powers of root that it holds"
	case CoreHandler:
		return "a handler process is given the memory of every dumpable process that crashes"
	case PtraceScope:
		return "any process traces the others of its uid, unless they are not dumpable"
	case NoSwap:
		return "heap memory may reach the disk; secret pages never do"
	case Lockdown:
		return "root reads and changes kernel memory, and with it secret pages"
	case UnprivilegedBPF:
		return "every user can load programs into the kernel, a frequent way to root"
	}
	return ""
}
