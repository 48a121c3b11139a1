// Package refserver runs the reference's nbd-server for tests that exchange files
// with it.
package refserver

import "nbd.example/nbd/internal/testgate"

// Needs are what a test must require before Start, Upload and Download: the reference,
// told from ours by what it says of its version, and a client.
func Needs() []testgate.Need {
	return []testgate.Need{testgate.Output("This is nbd-server version", "nbd-server", "-V"), testgate.Program("nbdsh")}
}
