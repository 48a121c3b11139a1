package main

import (
	"context"
	"errors"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/uri"
)

// alone reports whether the device is to be attached, and left to itself.
func (p *program) alone() bool { return p.flags.NoSupervise || p.flags.PreInit }

// attachAlone attaches a device that nobody keeps: what the reference does.
func (p *program) attachAlone(ctx context.Context, spec *supervise.Spec) int {
	if err := p.needsProcess(spec); err != nil {
		return p.fail(ctx, err)
	}
	if p.flags.Swap {
		if err := p.lockMemory(); err != nil {
			return p.fail(ctx, err)
		}
	}
	// As in the reference: nobody makes a new connection, so nobody waits for one, and none
	// is given up because it is slow, unless that is asked for.
	if p.flags.OnFailure == "" {
		spec.OnFailure.Fail = true
	}
	if spec.Timeout == 0 {
		spec.Timeout = clientflags.Never
	}
	driver, err := p.driver(ctx)
	if err != nil {
		return p.fail(ctx, err)
	}
	defer driver.Close()
	s, err := supervise.New(supervise.Config{Kernel: driver, Dir: p.dir(), Log: p.log})
	if err != nil {
		return p.fail(ctx, err)
	}
	limit, cancel := p.retrying(ctx)
	st, err := p.attachAs(ctx, spec, func(spec *supervise.Spec) (*supervise.State, error) { return s.AttachAlone(limit, spec) })
	cancel()
	// It keeps nothing, but what it has logged is written by now.
	if failed := s.Close(ctx, true); failed != nil {
		p.log.Debug("the end of what attached the device", "error", failed)
	}
	if err != nil {
		return p.fail(ctx, err)
	}
	n := newNotifier(p)
	if err := p.printDevice(st.Device); err != nil || n == nil {
		return p.tell(err)
	}
	defer n.end()
	signals, stop := p.signals()
	defer stop()
	return p.stay(ctx, driver, st.Index, n, signals, func() (text string, ok bool) { return st.Device + ": not kept by this process", true })
}

// needsProcess says why a device cannot be left to itself.
func (p *program) needsProcess(spec *supervise.Spec) error {
	if p.flags.NoNetlink {
		return errors.New("-preinit with -nonetlink is not supported: by ioctl, a device lives in the process that keeps it")
	}
	for _, text := range spec.URIs {
		u, err := uri.Parse(text)
		switch {
		case err != nil:
			return err
		case u.TLS:
			return errors.New("--no-supervise: TLS needs a process that stays, to encrypt and decrypt")
		case u.Transport == uri.VSock:
			return errors.New("--no-supervise: vsock needs a process that stays, since the kernel takes only TCP and unix sockets")
		}
	}
	return nil
}
