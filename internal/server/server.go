// Package server is the way in from outside: listeners, routes with their
// limits, handlers that decode, call the keeper and encode, health, metrics
// and shutdown. It promises that every method has a row in the table of
// routes, that every input has a limit and every wait a deadline, and that an
// error it does not know reaches a caller as "internal" with a request id. It
// must never decide what a principal may do, and never see a key.
package server
