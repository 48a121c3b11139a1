package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// hang ends what is stuck.
const hang = time.Minute

// What a name stood for is used while nobody can be asked.
func TestResolver(t *testing.T) {
	answers := make(chan []netip.Addr, 1)
	var dialed []string
	r := &Resolver{
		host: "server.example", port: 10809,
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			select {
			case a := <-answers:
				return a, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		dial: func(_ context.Context, network, address string) (net.Conn, error) {
			dialed = append(dialed, address)
			return nil, errors.New("refused")
		},
	}
	answers <- []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2")}
	connect := func(want ...string) bool {
		dialed = nil
		ctx, cancel := context.WithTimeout(context.Background(), hang)
		defer cancel()
		if _, err := r.Connect(ctx); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Fatal(err)
		}
		return slices.Equal(dialed, want)
	}
	old := []string{"192.0.2.1:10809", "192.0.2.2:10809"}
	if !connect(old...) {
		t.Errorf("dialed %v", dialed)
	}
	r.Refresh()
	r.Refresh() // one at a time
	if !connect(old...) {
		t.Errorf("dialed %v while the name is looked up", dialed)
	}
	answers <- []netip.Addr{netip.MustParseAddr("2001:db8::1")}
	for limit := time.Now().Add(hang); !connect("[2001:db8::1]:10809"); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the new address is not used")
		}
	}
}
