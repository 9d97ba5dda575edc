// Package chaos kills whole servers and looks at what is left. It owns
// the kill matrix: every point of package failpoint is reached by a real
// store, a real audit log and a real key process under load, the process dies
// there, and what had been acknowledged before is looked for afterwards. The
// witness of an acknowledgement is another process than the one that dies.
//
// It promises no more than a killed process shows: the kernel keeps what was
// written. Lost, torn and reordered writes are the business of the tests of
// the store and of the audit log; of those, only what may soundly be taken
// from the end of a file is taken here.
//
// Its tests have the build tag "failpoints"; without it there is only this page.
package chaos
