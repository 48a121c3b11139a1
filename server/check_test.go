package server

import (
	"context"
	"errors"
	"strings"
	"testing"

	"nbd.example/nbd/block"
)

var errNoMedium = errors.New("no medium")

// odd opens a device of an odd size.
func odd(context.Context, Client) (*block.Device, error) {
	d := newDisk()
	d.size = 1000
	return block.New(&diskFile{d})
}

func TestConfigCheck(t *testing.T) {
	d := newDisk()
	ok := row("a", d, "")
	with := func(f func(*Export)) Config {
		x := *ok
		f(&x)
		return Config{Exports: []*Export{&x}}
	}
	tests := []struct {
		name string
		cfg  Config
		want string // part of the error; empty if there is none
	}{
		{"nothing", Config{}, ""},
		{"an alias twice", with(func(x *Export) { x.Aliases = []string{"b", "b", "a"} }), ""},
		{"nothing to open", with(func(x *Export) { x.Open = nil }), `export "a": there is nothing to open`},
		{"block size", with(func(x *Export) { x.MinBlock = 3000 }), "not a power of two"},
		{"large block size", with(func(x *Export) { x.MinBlock = 1 << 17 }), "not a power of two up to 65536"},
		{"TLS that is not there", with(func(x *Export) { x.RequireTLS = true }), "demands TLS"},
		{"NUL in a name", with(func(x *Export) { x.Aliases = []string{"b\x00"} }), "NUL"},
		{"long description", with(func(x *Export) { x.Description = strings.Repeat("x", 4097) }), "4097 bytes"},
		{"name twice", Config{Exports: []*Export{ok, ok}}, `the name "a" is taken by export "a"`},
		{"alias taken", Config{Exports: []*Export{ok, {Name: "b", Open: d.open, Aliases: []string{"a"}}}}, `export "b": the name "a" is taken`},
		{"no certificate", Config{TLSMode: Forced}, "no TLS configuration"},
		{"TLS mode", Config{TLSMode: 7}, "unknown TLS mode 7"},
		{"small payload", func() (c Config) { c.Transmission.MaxPayload = 1 << 20; return }(), "maximum payload of 1048576 bytes"},
		{"size and block size", Config{Exports: []*Export{{Name: "odd", Open: odd, MinBlock: 512}}}, "1000 bytes is not a multiple"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := New(tt.cfg)
			if err == nil {
				s.Shutdown(testContext(t))
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if n, _ := d.counts(); n != 0 {
				t.Errorf("the disk is still open %d times", n)
			}
		})
	}
}

// TestNewIsAllOrNothing: the devices before the one that fails are closed.
func TestNewIsAllOrNothing(t *testing.T) {
	a, bad := newDisk(), newDisk()
	bad.set(func() { bad.fail = errNoMedium })
	if _, err := New(config(row("a", a, ""), row("bad", bad, ""), row("c", a, ""))); err == nil ||
		!strings.Contains(err.Error(), `export "bad": no medium`) {
		t.Errorf("New: %v", err)
	}
	a.expect(t, 0, 2)
}

func TestSamePolicy(t *testing.T) {
	base := Export{Name: "a", MinBlock: 0, Allow: mustRules(t, "1.2.3.4")}
	same := base
	same.MinBlock, same.Allow, same.Aliases = 1, mustRules(t, "1.2.3.4 # again"), []string{"a"}
	if !base.samePolicy(&same) {
		t.Error("equal policies differ")
	}
	for name, f := range map[string]func(*Export){
		"Description":    func(x *Export) { x.Description = "x" },
		"BeginSettings":  func(x *Export) { x.BeginSettings = "x" },
		"ReadOnly":       func(x *Export) { x.ReadOnly = true },
		"Rotational":     func(x *Export) { x.Rotational = true },
		"Hide":           func(x *Export) { x.Hide = 4 },
		"MinBlock":       func(x *Export) { x.MinBlock = 512 },
		"MaxConnections": func(x *Export) { x.MaxConnections = 1 },
		"RequireTLS":     func(x *Export) { x.RequireTLS = true },
		"Allow":          func(x *Export) { x.Allow = nil },
		"Allow others":   func(x *Export) { x.Allow = mustRules(t, "1.2.3.5") },
		"NotListed":      func(x *Export) { x.NotListed = true },
		"Aliases":        func(x *Export) { x.Aliases = []string{""} },
	} {
		x := base
		f(&x)
		if base.samePolicy(&x) {
			t.Errorf("%s makes no difference", name)
		}
	}
}
