//go:build !linux

package hangups

import (
	"errors"
	"os"
)

// Poller is for kernels that have an NBD driver.
type Poller struct{}

// New makes one that can do nothing.
func New() (*Poller, error) { return &Poller{}, nil }

// Watch is not there.
func (p *Poller) Watch(*os.File, func()) (stop func(), err error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (p *Poller) Close() {}
