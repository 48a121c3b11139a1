// Package refserver runs the reference's nbd-server for tests that exchange files
// with it.
package refserver
