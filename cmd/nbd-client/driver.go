package main

import (
	"context"
	"errors"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/nbdioctl"
	"nbd.example/nbd/kernel/nbdnl"
)

// loadLimit bounds the loading of the kernel module.
const loadLimit = 20 * time.Second

// openDriver opens the kernel's driver; the old one, by ioctl, if it is told to.
func openDriver(ioctl bool) (kernel.Driver, error) {
	if ioctl {
		return openIoctl()
	}
	return openNetlink()
}

func openNetlink() (kernel.Driver, error) {
	d, err := nbdnl.Open()
	if err != nil {
		return nil, err
	}
	return d, nil
}

func openIoctl() (kernel.Driver, error) {
	d, err := nbdioctl.Open()
	if err != nil {
		return nil, err
	}
	return d, nil
}

// anyDriver opens whichever driver there is, for commands about devices that may have
// been attached by either.
func (p *program) anyDriver() (kernel.Driver, error) {
	d, err := p.env.driver(p.flags.NoNetlink)
	if errors.Is(err, kernel.ErrNoModule) && !p.flags.NoNetlink {
		if old, oldErr := p.env.driver(true); oldErr == nil {
			return old, nil
		}
	}
	return d, err
}

// driver opens the kernel's driver for attaching: a module that is missing is loaded,
// if that can be.
func (p *program) driver(ctx context.Context) (kernel.Driver, error) {
	d, err := p.env.driver(p.flags.NoNetlink)
	if !errors.Is(err, kernel.ErrNoModule) {
		return d, err
	}
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	if err := p.env.loadModule(ctx); err != nil {
		return nil, err
	}
	return p.env.driver(p.flags.NoNetlink)
}
