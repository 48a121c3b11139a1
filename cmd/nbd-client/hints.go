package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/uri"
)

// hints returns what can be done about an error, a line each.
func (p *program) hints(ctx context.Context, err error) []string {
	var busy *supervise.BusyError
	switch {
	case errors.As(err, &busy):
		return []string{"end what uses it, or let --force break it"}
	case errors.Is(err, kernel.ErrBusy):
		return p.whoIsBusy(ctx)
	case errors.Is(err, handshake.ErrUnknown):
		if strings.Contains(err.Error(), "the server has ") {
			return []string{"name one of them by -N NAME"}
		}
		return p.offered(ctx)
	}
	for _, hint := range []func(error) string{p.kernelHint, p.serverHint, tlsHint, p.networkHint} {
		if text := hint(err); text != "" {
			return []string{text}
		}
	}
	return nil
}

// kernelHint is about what the kernel refuses.
func (p *program) kernelHint(err error) string {
	switch {
	case errors.Is(err, kernel.ErrNoModule):
		return "load it: modprobe nbd max_part=16; at each boot: echo nbd >/etc/modules-load.d/nbd.conf"
	case errors.Is(err, kernel.ErrPermission), errors.Is(err, fs.ErrPermission) && p.ofKernel(err) && os.Geteuid() > 0:
		return "start it as root, in the first network namespace; containers need CAP_SYS_ADMIN and CAP_NET_ADMIN there"
	case errors.Is(err, kernel.ErrNoDevice) && p.flags.Action == clientflags.Attach:
		return "leave the device away, and the kernel chooses one; the module's parameter nbds_max says how many there are from the start"
	}
	return ""
}

// ofKernel reports whether err is about a file of the kernel, or of those who keep devices,
// and not about a server's socket, or a certificate.
func (p *program) ofKernel(err error) bool {
	var path *fs.PathError
	var op *net.OpError
	name := ""
	switch {
	case errors.As(err, &path):
		name = path.Path
	case errors.As(err, &op) && op.Addr != nil:
		name = op.Addr.String()
	}
	for _, dir := range []string{"/sys", "/dev", p.dir()} {
		if strings.HasPrefix(name, dir+"/") || name == dir {
			return true
		}
	}
	return false
}

// serverHint is about what the server refuses.
func (p *program) serverHint(err error) string {
	switch {
	case errors.Is(err, handshake.ErrTLSRequired):
		return "the server needs TLS: add -x, and -A FILE unless the system trusts its certificate; in a URI write nbds in place of nbd"
	case (errors.Is(err, handshake.ErrPolicy) || errors.Is(err, handshake.ErrUnsupported)) && strings.Contains(err.Error(), "refused "+proto.OptStartTLS.String()):
		return "the server offers no TLS: leave -x and the other options of TLS away, and in a URI write nbd in place of nbds, if you need no protection"
	case errors.Is(err, handshake.ErrPolicy):
		return "the server does not want this client, or does not list its exports: see allowlist and authfile there"
	case errors.Is(err, handshake.ErrShutdown):
		return "the server is about to end: try again, or let --retry do so"
	case errors.Is(err, proto.ErrOldstyle):
		return "a server of before 2011, or one told to be like it: it knows neither names of exports nor TLS; leave -N and the options of TLS away"
	case errors.Is(err, handshake.ErrProtocol):
		return "is it an NBD server that listens there? Old ones may lose their step at NBD_OPT_GO: try -no-optgo"
	case errors.Is(err, handshake.ErrHungUp):
		return "the server has ended the connection without a word: does it allow this client? Its log tells"
	}
	return ""
}

// tlsHint is about certificates.
func tlsHint(err error) string {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		alert     tls.AlertError
	)
	switch {
	case errors.As(err, &authority):
		return "nobody whom this system trusts has certified the server: name the authority by -A FILE"
	case errors.As(err, &host):
		return "the certificate is for other names: name one of them by -H NAME, if you know that this is the server"
	case errors.As(err, &invalid):
		return "the server's certificate cannot be used: is this machine's clock right?"
	case errors.As(err, &record):
		return "what answers there does not speak TLS"
	case errors.As(err, &alert):
		return "the server has refused the TLS session: does it want a certificate of the client (-F and -K)?"
	}
	return ""
}

// networkHint is about the way to the server.
func (p *program) networkHint(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "is the name right? Commands are the first word of the command line, see --help"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens there: is nbd-server running, and is that its port? The default is " + clientflags.DefaultPort
	case errors.Is(err, fs.ErrNotExist) && p.flags.Unix:
		return "there is no such socket: is the server running, and is that its unixsock?"
	case errors.Is(err, context.DeadlineExceeded):
		return "--connect-timeout gives a slow server more time, --retry waits for one that comes later"
	}
	return ""
}

// whoIsBusy says who has the device that the command line names.
func (p *program) whoIsBusy(ctx context.Context) (list []string) {
	name := p.flags.Device
	if name == "" && len(p.flags.Devices) > 0 {
		name = p.flags.Devices[0]
	}
	if name == "" {
		return nil
	}
	d, err := p.find(ctx, name)
	if err != nil {
		return nil
	}
	if d.state != nil {
		list = append(list, fmt.Sprintf("%s has %s attached, kept by process %d", d.index.Path(), printable(d.state.Identifier), d.state.Process.PID))
	} else if d.info != nil && d.info.PID != 0 {
		list = append(list, fmt.Sprintf("%s was attached by process %d", d.index.Path(), d.info.PID))
	}
	if d.info != nil {
		p.env.openers(d.info)
	}
	if users := usersOf(d.info); users != "" {
		list = append(list, d.index.Path()+" is in use: "+users)
	}
	return append(list, "leave the device away, and the kernel chooses a free one; nbd-client list shows all")
}

// usersOf says who uses a device, or "".
func usersOf(i *kernel.Info) string {
	if i == nil {
		return ""
	}
	return printable(i.Users())
}

// offered says which exports the server of the command line has.
func (p *program) offered(ctx context.Context) []string {
	spec, err := p.spec(p.flags)
	if err != nil || len(spec.URIs) == 0 {
		return nil
	}
	u, err := uri.Parse(spec.URIs[0])
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	list, err := p.list(ctx, u, spec)
	if err != nil {
		return []string{"the server does not say which exports it has; name one by -N NAME"}
	}
	const most = 20
	var names []string
	for _, e := range list[:min(most, len(list))] {
		names = append(names, fmt.Sprintf("%.80q", e.Export))
	}
	if len(list) > most {
		names = append(names, fmt.Sprintf("and %d more", len(list)-most))
	}
	if len(names) == 0 {
		return []string{"the server lists no export"}
	}
	return []string{"the server has: " + strings.Join(names, ", ") + "; name one by -N NAME"}
}
