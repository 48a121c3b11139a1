package supervise

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"testing"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/kernel"
)

// Whatever has a kind has it on the other side of the control socket, too.
func TestKinds(t *testing.T) {
	pass := func(err error) error {
		line, failed := encode(failure(err))
		if failed != nil {
			t.Fatal(failed)
		}
		_, got := parseReply(line)
		if got == nil || got.Error() != err.Error() {
			t.Errorf("%v came as %v", err, got)
		}
		return got
	}
	seen := map[kind]bool{}
	for _, k := range kinds {
		err := fmt.Errorf("attach: a\nb: %w", k.err)
		if !k.is(pass(err)) {
			t.Errorf("%s is lost", k.kind)
		}
		if seen[k.kind] {
			t.Errorf("%s stands there twice", k.kind)
		}
		seen[k.kind] = true
	}
	both := pass(errors.Join(fmt.Errorf("one: %w", &net.DNSError{Name: "h"}), fmt.Errorf("two: %w", handshake.ErrPolicy)))
	var dns *net.DNSError
	if !errors.As(both, &dns) || !errors.Is(both, handshake.ErrPolicy) || errors.Is(both, handshake.ErrUnknown) {
		t.Errorf("%#v", both)
	}
	var authority x509.UnknownAuthorityError
	if err := pass(errors.New("x509: no")); errors.As(err, &authority) || errors.Is(err, kernel.ErrBusy) {
		t.Errorf("%#v", err)
	}
	var busy *BusyError
	if err := pass(&BusyError{Forced: true, Info: kernel.Info{Index: 3, Claimed: true}}); !errors.As(err, &busy) || !busy.Forced || !busy.Info.Claimed {
		t.Errorf("%#v", err)
	}
	var attached *AttachedError
	if err := pass(&AttachedError{State{Device: "/dev/nbd3"}}); !errors.As(err, &attached) || attached.State.Device != "/dev/nbd3" {
		t.Errorf("%#v", err)
	}
	if _, err := parseReply([]byte(`{"error":"x","kinds":["of another version"]}`)); err == nil || err.Error() != "x" {
		t.Errorf("%v", err)
	}
}
