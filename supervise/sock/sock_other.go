//go:build !linux

package sock

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// No other kernel has an NBD driver, so there are no sockets for one.

// ForKernel returns an error.
func ForKernel(net.Conn) (*os.File, error) { return nil, errors.ErrUnsupported }

// HungUp reports true.
func HungUp(*os.File) bool { return true }

// End does nothing.
func End([]*os.File, time.Duration) {}

// Leave closes the file.
func Leave(file *os.File) { file.Close() }

// Inode returns 0.
func Inode(*os.File) uint64 { return 0 }

// Dialer returns that of package net.
func Dialer(time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext
}
