package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"nbd.example/nbd/chain"
	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/tlsprio"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/uri"
)

// spec makes of flags what the supervisor takes.
func (p *program) spec(f *clientflags.Flags) (*supervise.Spec, error) {
	s := &supervise.Spec{
		Identifier: f.Identifier, Connections: f.Connections, BlockSize: f.BlockSize, Size: f.Size, ReadOnly: f.ReadOnly,
		Timeout: f.Timeout, ConnectTimeout: f.ConnectTimeout, Wait: f.Retry > 0,
		OnFailure:   supervise.Policy{Fail: f.OnFailure == "error", Limit: f.Limit},
		AnyInstance: f.AnyInstance, Swap: f.Swap, ExportName: f.NoOptGo, Bare: f.PreInit,
	}
	if f.Destroy {
		s.Client |= kernel.DestroyOnDisconnect
	}
	if f.CloseOnClose {
		s.Client |= kernel.DisconnectOnClose
	}
	if f.Device != "" {
		i, err := p.index(f.Device)
		if err != nil {
			return nil, err
		}
		s.Device = i.Path()
	}
	if f.Serve != "" {
		text, err := p.chain(f.Serve, f.Swap)
		s.Serve = text
		return s, err
	}
	if err := p.target(f, s); err != nil {
		return nil, err
	}
	return s, nil
}

// chain reads a chain and writes it so that it means the same in every folder. What is
// swapped on goes past the page cache, which would grow by what swapping sets free.
func (p *program) chain(text string, swap bool) (string, error) {
	spec, err := p.registry().Parse(text)
	if err == nil && swap {
		switch name, args := spec.Backend(); {
		case name != chain.FileElement && name != "multi":
			p.warn("swap on " + name + " sets no memory free: serve a block device, or a file")
		case !args.Bool("direct"):
			spec, err = spec.Set(map[string]string{"direct": "true"})
		}
	}
	if err != nil {
		return "", fmt.Errorf("--serve: %w", err)
	}
	return spec.Absolute(p.env.open.Abs(".")).String(), nil
}

// target fills in the servers, and how to protect the way to them.
func (p *program) target(f *clientflags.Flags, s *supervise.Spec) error {
	uris, err := p.addresses(f)
	if err != nil {
		return err
	}
	for _, u := range uris {
		u.TLS = u.TLS || f.UsesTLS()
		if u.TLS {
			u.TLSCertificates, u.TLSPSKFile = p.env.open.Abs(u.TLSCertificates), p.env.open.Abs(u.TLSPSKFile)
		}
		s.URIs = append(s.URIs, u.String())
	}
	if !f.UsesTLS() {
		return nil
	}
	min, max, unknown, err := tlsprio.Versions(f.Priority)
	if err != nil {
		return fmt.Errorf("-priority: %w", err)
	}
	if len(unknown) > 0 {
		p.warn(fmt.Sprintf("-priority: no effect of %s; the suites of Go's crypto/tls are used", strings.Join(unknown, ":")))
	}
	cert := f.Cert
	if cert == "" {
		cert = f.Key // both in one file
	}
	abs := p.env.open.Abs
	s.TLS = &supervise.TLSFiles{
		Cert: abs(cert), Key: abs(f.Key), CA: abs(f.CA), Name: f.TLSHostname,
		MinVersion: min, MaxVersion: max, Insecure: f.Insecure,
	}
	return nil
}

// addresses returns the servers in the order in which to try them.
func (p *program) addresses(f *clientflags.Flags) (list []*uri.URI, err error) {
	for _, text := range f.URIs {
		u, err := uri.Parse(text)
		if err != nil {
			return nil, err
		}
		if u.Transport == uri.Unix && !strings.HasPrefix(u.Socket, "\x00") {
			u.Socket = p.env.open.Abs(u.Socket)
		}
		list = append(list, u)
	}
	switch {
	case len(list) > 0:
		return list, nil
	case f.Unix:
		return []*uri.URI{{Transport: uri.Unix, Socket: p.socket(f.Host), Export: f.Name}}, checkURI("-unix "+f.Host, &uri.URI{Transport: uri.Unix, Socket: p.socket(f.Host), Export: f.Name})
	}
	for _, a := range append([]string{""}, f.Also...) {
		host, port := f.Host, f.Port
		if a != "" {
			if host, port, err = clientflags.SplitHost(a); err != nil {
				return nil, err
			}
		}
		if port == "" {
			port = clientflags.DefaultPort
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("port %q: %w", port, err)
		}
		u := &uri.URI{Transport: uri.TCP, Host: host, Port: uint32(n), Export: f.Name}
		if err := checkURI(host, u); err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	return list, nil
}

// socket returns the path of a unix socket. One that begins with @ is abstract.
func (p *program) socket(path string) string {
	if name, abstract := strings.CutPrefix(path, "@"); abstract {
		return "\x00" + name
	}
	return p.env.open.Abs(path)
}

// checkURI holds what a command line says to the rules of URIs.
func checkURI(what string, u *uri.URI) error {
	if _, err := uri.Parse(u.String()); err != nil {
		var cause error = err
		for errors.Unwrap(cause) != nil {
			cause = errors.Unwrap(cause)
		}
		return fmt.Errorf("%s: %w", what, cause)
	}
	return nil
}

// index finds out which kernel device a word names: /dev/nbd0, nbd0, nb0, or a link to
// one.
func (p *program) index(name string) (kernel.Index, error) {
	i, err := kernel.ParseIndex(name)
	if err == nil || !strings.HasPrefix(name, "/") {
		return i, err
	}
	if err := partition(name); err != nil {
		return 0, err
	}
	to, linkErr := filepath.EvalSymlinks(name)
	if linkErr != nil {
		return 0, linkErr
	}
	if i, linkErr = kernel.ParseIndex(to); linkErr == nil {
		return i, nil
	}
	if partErr := partition(to); partErr != nil {
		err = partErr
	}
	return 0, err
}

// partition is an error if a path is that of a partition.
func partition(name string) error {
	if i, ok := partitionOf(name); ok {
		return fmt.Errorf("%s is a partition: name the device, %s", name, i.Path())
	}
	return nil
}

// partitionOf returns the device of which a path names a partition.
func partitionOf(name string) (i kernel.Index, ok bool) {
	device, number, found := strings.Cut(strings.TrimPrefix(name, "/dev/"), "p")
	if !found || number == "" || strings.Trim(number, "0123456789") != "" || !strings.HasPrefix(name, "/dev/nbd") {
		return 0, false
	}
	i, err := kernel.ParseIndex(device)
	return i, err == nil
}

// disk returns the name of the device instead of that of one of its partitions, or of a link
// to one. Other names it returns as they are.
func disk(name string) string {
	names := []string{name, "/dev/" + name}
	if strings.HasPrefix(name, "/") {
		if to, err := filepath.EvalSymlinks(name); err == nil {
			names = append(names, to)
		}
	}
	for _, n := range names {
		if i, ok := partitionOf(n); ok {
			return i.Path()
		}
	}
	return name
}
