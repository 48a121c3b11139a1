package server

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// check says what is wrong with cfg, before anything is opened.
func (cfg *Config) check() error {
	var errs []error
	if cfg.TLSMode < NoTLS || cfg.TLSMode > Forced {
		errs = append(errs, fmt.Errorf("unknown TLS mode %d", cfg.TLSMode))
	}
	if cfg.TLSMode != NoTLS && cfg.TLS == nil {
		errs = append(errs, errors.New("TLS is to be offered, but there is no TLS configuration with a certificate"))
	}
	if n := cfg.Transmission.MaxPayload; n != 0 && (n < proto.DefaultMaxPayload || uint64(n) > math.MaxUint32) {
		errs = append(errs, fmt.Errorf("maximum payload of %d bytes: it must be from %d to %d",
			n, proto.DefaultMaxPayload, uint32(math.MaxUint32)))
	}
	names := make(map[string]string)
	for _, x := range cfg.Exports {
		if err := x.check(cfg); err != nil {
			errs = append(errs, fmt.Errorf("export %s: %w", quote(x.Name), err))
		}
		for _, n := range x.names() {
			if other, taken := names[n]; taken {
				errs = append(errs, fmt.Errorf("export %s: the name %s is taken by export %s",
					quote(x.Name), quote(n), quote(other)))
			}
			names[n] = x.Name
		}
	}
	return errors.Join(errs...)
}

func (x *Export) check(cfg *Config) error {
	if x.Open == nil {
		return errors.New("there is nothing to open")
	}
	for _, n := range append(x.names(), x.Description) {
		if err := proto.CheckString([]byte(n)); err != nil {
			return err
		}
	}
	if m := x.MinBlock; m&(m-1) != 0 || m > proto.MaxMinBlock {
		return fmt.Errorf("minimum block size %d is not a power of two up to %d", m, proto.MaxMinBlock)
	}
	if x.RequireTLS && cfg.TLSMode == NoTLS {
		return errors.New("it demands TLS, which the server does not offer")
	}
	return nil
}

// names are all names of x. An alias that repeats another name is none.
func (x *Export) names() []string {
	all := []string{x.Name}
	for _, n := range x.Aliases {
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return all
}

// suits says why d cannot be served as x.
func (x *Export) suits(d *block.Device) error {
	if m := int64(max(x.MinBlock, 1)); d.Size()%m != 0 {
		return fmt.Errorf("its size of %d bytes is not a multiple of its minimum block size of %d bytes; make one of them fit the other", d.Size(), m)
	}
	return nil
}

// samePolicy tells whether x and o differ at most in how they are opened.
func (x *Export) samePolicy(o *Export) bool {
	return x.Description == o.Description && x.BeginSettings == o.BeginSettings && x.Tap == o.Tap && x.ReadOnly == o.ReadOnly && x.Rotational == o.Rotational &&
		x.Hide == o.Hide && max(x.MinBlock, 1) == max(o.MinBlock, 1) && x.MaxConnections == o.MaxConnections &&
		x.IdleTimeout == o.IdleTimeout && x.RequireTLS == o.RequireTLS && x.NotListed == o.NotListed && x.Allow.equal(o.Allow) &&
		slices.Equal(x.names(), o.names())
}
