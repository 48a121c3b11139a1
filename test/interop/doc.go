// Package interop drives the built nbd-server with the programs that people use
// today, and our own client half with the servers that they use. It holds tests
// only. Each test names the programs it needs and is skipped where they are
// missing; see package internal/testgate for how to make that a failure.
package interop
