//go:build !linux

package supervise

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// No other kernel has an NBD driver, so there are no sockets for one.

func forKernel(net.Conn) (*os.File, error) { return nil, errors.ErrUnsupported }

func hungUp(*os.File) bool { return true }

func kill(*os.File, time.Duration) {}

func leave(file *os.File) { file.Close() }

func inode(*os.File) uint64 { return 0 }

func processStart(int) uint64 { return 0 }

func dialer(time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext
}

func lockByte(*os.File, int64) (bool, error) { return true, nil }

func restrict(int) {}
