//go:build !unix

package main

import (
	"errors"
	"net"
)

// socketPair fails: this system has none.
func socketPair() (a, b net.Conn, err error) { return nil, nil, errors.ErrUnsupported }
