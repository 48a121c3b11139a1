package supervise

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"slices"
	"syscall"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

// kind names an error that a program may want to recognise, also when it comes from
// another process, through the control socket.
type kind string

// kindAttached is that of an AttachedError, which comes with a State.
const kindAttached kind = "attached"

// kinds are the other ones. What is no value, but a type, stands there with its zero value.
var kinds = []row{
	value("closed", ErrClosed), value("handed-over", ErrHandedOver), value("detached", ErrDetached), value("taken-away", ErrTakenAway),
	value("busy", kernel.ErrBusy), value("no-device", kernel.ErrNoDevice), value("no-module", kernel.ErrNoModule),
	value("not-connected", kernel.ErrNotConnected), value("permission", kernel.ErrPermission),
	value("unknown-export", handshake.ErrUnknown), value("policy", handshake.ErrPolicy), value("tls-required", handshake.ErrTLSRequired),
	value("shutdown", handshake.ErrShutdown), value("unsupported", handshake.ErrUnsupported), value("hung-up", handshake.ErrHungUp),
	value("protocol", handshake.ErrProtocol), value("oldstyle", proto.ErrOldstyle),
	value("refused", syscall.ECONNREFUSED), value("not-there", fs.ErrNotExist), value("deadline", context.DeadlineExceeded),
	typed("name", &net.DNSError{}), typed("tls-authority", x509.UnknownAuthorityError{}), typed("tls-name", x509.HostnameError{}),
	typed("tls-certificate", x509.CertificateInvalidError{}), typed("tls-record", tls.RecordHeaderError{}), typed("tls-alert", tls.AlertError(0)),
}

type row struct {
	kind kind
	is   func(error) bool
	err  error
}

func value(k kind, err error) row {
	return row{k, func(e error) bool { return errors.Is(e, err) }, err}
}

func typed[E error](k kind, zero E) row {
	return row{k, func(e error) bool { var as E; return errors.As(e, &as) }, zero}
}

// kindsOf returns all kinds that an error is of.
func kindsOf(err error) (list []kind) {
	for _, k := range kinds {
		if k.is(err) {
			list = append(list, k.kind)
		}
	}
	return list
}

// known returns the errors of these kinds, but for those that are not known here.
func known(list []kind) (errs []error) {
	for _, k := range kinds {
		if slices.Contains(list, k.kind) {
			errs = append(errs, k.err)
		}
	}
	return errs
}

// remoteError is an error of another process. It is whatever its kinds say, for errors.Is
// and errors.As; of types only the zero value is left.
type remoteError struct {
	text string
	is   []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.is }
