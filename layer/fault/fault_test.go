package fault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/fault"
)

// open returns a device of 64 KiB with faults by s.
func open(t testing.TB, s *fault.Script) *block.Device {
	t.Helper()
	m, err := memory.New(memory.Config{Size: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.Stack(m, fault.Layer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func script(t testing.TB, text string) *fault.Script {
	t.Helper()
	s, err := fault.New(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBadSector(t *testing.T) {
	s := script(t, "read@4096+512=EIO")
	d := open(t, s)
	ctx := t.Context()
	for _, x := range []struct {
		off, n int64
		at     int64 // -1: no error
	}{
		{0, 4096, -1}, {4608, 512, -1}, {4095, 1, -1},
		{0, 4097, 4096}, {4000, 4000, 4096}, {4096, 512, 4096}, {4607, 1, 4607}, {4300, 1000, 4300},
	} {
		err := d.ReadAt(ctx, make([]byte, x.n), x.off)
		var at *block.OffsetError
		switch {
		case x.at < 0 && err != nil:
			t.Errorf("read of %d at %d: %v", x.n, x.off, err)
		case x.at >= 0 && (!errors.Is(err, syscall.EIO) || !errors.As(err, &at) || at.Off != x.at):
			t.Errorf("read of %d at %d: %v, want EIO at %d", x.n, x.off, err, x.at)
		}
	}
	if err := d.WriteAt(ctx, make([]byte, 512), 4096, 0); err != nil {
		t.Errorf("write: %v", err)
	}
	// It can be mended while it is in use.
	if err := s.SetRules(); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(ctx, make([]byte, 512), 4096); err != nil {
		t.Errorf("read of the mended sector: %v", err)
	}
	if n := s.Fired(); n != 5 {
		t.Errorf("fired %d times, want 5", n)
	}
}

// TestCounts plays ten writes with each rule, and looks which of them fail.
func TestCounts(t *testing.T) {
	for rule, want := range map[string]string{
		"write=EIO":           "xxxxxxxxxx",
		"write:once=EIO":      "x.........",
		"write=EIO:once":      "x.........",
		"write:3=EIO":         "..x.......",
		"write:3+=EIO":        "..xxxxxxxx",
		"write:3-5=EIO":       "..xxx.....",
		"all:2=EIO":           ".x........",
		"flush/write:2=EIO":   ".x........",
		"read=EIO":            "..........",
		"write@1=EIO":         "..........",
		"write:100%=EIO":      "xxxxxxxxxx",
		"write:2=5;write=28":  "-x--------",
		"write:2=28,write=5":  "x-xxxxxxxx",
		"write:9-9=EIO\n\n ;": "........x.",
	} {
		d := open(t, script(t, rule))
		var got strings.Builder
		for range 10 {
			switch err := d.WriteAt(t.Context(), []byte{1}, 0, 0); {
			case err == nil:
				got.WriteByte('.')
			case errors.Is(err, syscall.EIO):
				got.WriteByte('x')
			case errors.Is(err, syscall.ENOSPC):
				got.WriteByte('-')
			default:
				t.Fatalf("%s: %v", rule, err)
			}
		}
		if got.String() != want {
			t.Errorf("%s: %s, want %s", rule, &got, want)
		}
	}
}

func TestPercent(t *testing.T) {
	play := func(seed uint64) string {
		s := script(t, "read:30%=EIO")
		s.Seed = seed
		d := open(t, s)
		var got strings.Builder
		for range 1000 {
			fmt.Fprint(&got, d.ReadAt(t.Context(), make([]byte, 1), 0) != nil, " ")
		}
		return got.String()
	}
	a := play(1)
	if n := strings.Count(a, "true"); n < 200 || n > 400 {
		t.Errorf("%d of 1000 failed, want about 300", n)
	}
	if a != play(1) {
		t.Error("the same seed gave something else")
	}
	if a == play(2) {
		t.Error("another seed gave the same")
	}
}

func TestTornWrite(t *testing.T) {
	d := open(t, script(t, "write:2=EIO/512"))
	ctx := t.Context()
	if err := d.WriteAt(ctx, bytes.Repeat([]byte{1}, 2048), 0, 0); err != nil {
		t.Fatal(err)
	}
	err := d.WriteAt(ctx, bytes.Repeat([]byte{2}, 1024), 1024, 0)
	var at *block.OffsetError
	if !errors.Is(err, syscall.EIO) || !errors.As(err, &at) || at.Off != 1536 {
		t.Errorf("torn write: %v, want EIO at 1536", err)
	}
	p := make([]byte, 2048)
	if err := d.ReadAt(ctx, p, 0); err != nil {
		t.Fatal(err)
	}
	want := append(bytes.Repeat([]byte{1}, 1024), bytes.Repeat([]byte{2}, 512)...)
	want = append(want, bytes.Repeat([]byte{1}, 512)...)
	if !bytes.Equal(p, want) {
		t.Error("the torn write did not leave exactly its first 512 bytes")
	}
}

func TestPanic(t *testing.T) {
	d := open(t, script(t, "read:2=panic"))
	if err := d.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "read:2=panic") {
			t.Errorf("recovered %v", r)
		}
		if err := d.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
			t.Errorf("after the panic: %v", err)
		}
	}()
	d.ReadAt(t.Context(), make([]byte, 1), 0)
	t.Error("no panic")
}

func TestFlush(t *testing.T) {
	d := open(t, script(t, "flush@4096+1:once=EIO"))
	err := d.Flush(t.Context())
	if !errors.Is(err, syscall.EIO) || !errors.Is(err, block.ErrNotStable) || !strings.Contains(err.Error(), "rule") {
		t.Errorf("flush: %v", err)
	}
	if err := d.Flush(t.Context()); !errors.Is(err, block.ErrNotStable) {
		t.Errorf("second flush: %v", err)
	}
}

// TestKinds fails each kind of operation, and no other.
func TestKinds(t *testing.T) {
	ctx := context.Background()
	ops := map[string]func(d *block.Device) error{
		"read":  func(d *block.Device) error { return d.ReadAt(ctx, make([]byte, 8), 0) },
		"write": func(d *block.Device) error { return d.WriteAt(ctx, make([]byte, 8), 0, 0) },
		"flush": func(d *block.Device) error { return d.Flush(ctx) },
		"trim":  func(d *block.Device) error { return d.Trim(ctx, 0, 8, 0) },
		"zero":  func(d *block.Device) error { return d.WriteZeroes(ctx, 0, 8, 0) },
		"extents": func(d *block.Device) error {
			return d.Extents(ctx, 0, 8, 0, func(block.Extent) bool { return true })
		},
		"cache": func(d *block.Device) error { return d.Cache(ctx, 0, 8) },
	}
	for kind := range ops {
		for op, do := range ops {
			d := open(t, script(t, kind+"=EPERM"))
			if err := do(d); (op == kind) != errors.Is(err, syscall.EPERM) || op != kind && err != nil {
				t.Errorf("rule for %s: %s: %v", kind, op, err)
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, x := range []struct {
		text string
		pos  int
		want string
	}{
		{"read", 0, `no "="`},
		{"raed=EIO", 0, `unknown kind of operation "raed"`},
		{"read=EIO; =EIO", 10, "unknown kind"},
		{"read=EOI", 0, `unknown error "EOI"`},
		{"read=", 0, "unknown error"},
		{"read=EIO/x", 0, "part"},
		{"read@x=EIO", 0, "offset"},
		{"read@1+0=EIO", 0, "touches nothing"},
		{"read@9223372036854775807+1=EIO", 0, "out of bounds"},
		{"read@-1=EIO", 0, "offset"},
		{"read:0=EIO", 0, "counted from 1"},
		{"read:5-3=EIO", 0, "makes no sense"},
		{"read:3+4=EIO", 0, "makes no sense"},
		{"read:soon=EIO", 0, "want \"once\""},
		{"read:1:2=EIO", 0, "two counts"},
		{"read:once=EIO:once", 0, "two counts"},
		{"read:0%=EIO", 0, "percentage"},
		{"read:101%=EIO", 0, "percentage"},
		{"read:NaN%=EIO", 0, "percentage"},
		{"read:5%:6%=EIO", 0, "two percentages"},
		{strings.Repeat("read=EIO;", 1025), 9 * 1024, "more than 1024"},
		{strings.Repeat("x", 1<<16+1), 0, "at most 65536"},
	} {
		_, err := fault.Parse(x.text)
		var e *fault.SyntaxError
		if !errors.As(err, &e) || e.Pos != x.pos || !strings.Contains(e.Msg, x.want) {
			t.Errorf("Parse(%.40q): %.400v, want one at %d with %q", x.text, err, x.pos, x.want)
		}
	}
}

// TestRules gives rules that have no text form.
func TestRules(t *testing.T) {
	own := errors.New("my own")
	s := &fault.Script{}
	if err := s.Add(fault.Rule{Kinds: fault.Read, Err: own}); err != nil {
		t.Fatal(err)
	}
	if err := open(t, s).ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, own) {
		t.Errorf("read: %v", err)
	}
	for _, bad := range []fault.Rule{
		{Kinds: fault.Read}, {Kinds: 0x80, Err: own}, {Kinds: fault.Read, Err: own, Off: -1},
		{Kinds: fault.Read, Err: own, First: 2, Last: 1}, {Kinds: fault.Read, Err: own, Percent: 101},
		{Kinds: fault.Read, Err: own, Part: -1},
	} {
		if s.Add(bad) == nil || s.SetRules(bad) == nil {
			t.Errorf("rule %+v was taken", bad)
		}
	}
	if n := len(s.Rules()); n != 1 {
		t.Errorf("%d rules are left, want 1", n)
	}
}

// TestConcurrent changes the rules while they are followed.
func TestConcurrent(t *testing.T) {
	s := &fault.Script{}
	d := open(t, s)
	done := make(chan error)
	for range 4 {
		go func() {
			for range 500 {
				err := d.ReadAt(context.Background(), make([]byte, 8), rand.Int64N(1024))
				if err != nil && !errors.Is(err, syscall.EIO) {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for i := range 200 {
		if err := s.Set([]string{"read:50%=EIO", ""}[i%2]); err != nil {
			t.Error(err)
		}
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"read@4096+512=EIO", "write:3=ENOSPC", "write:3+=28", "flush=EIO:once", "read/write:10%=EIO", "write:2=EIO/512",
		"read:5=panic", "all@0x1000:2-3:0.5%=ENOTSUP\n;,", "trim/zero/extents/cache=ESHUTDOWN",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := fault.Parse(text)
		if err != nil {
			var e *fault.SyntaxError
			if !errors.As(err, &e) || e.Pos < 0 || e.Pos > len(text) {
				t.Fatalf("Parse(%q): %#v", text, err)
			}
			return
		}
		for _, r := range rules {
			again, err := fault.Parse(r.String())
			if err != nil || len(again) != 1 || again[0].String() != r.String() {
				t.Fatalf("Parse(%q): rule %q becomes %v, %v", text, r, again, err)
			}
		}
	})
}

func Example() {
	script, err := fault.New("read@4096+512=EIO; write:2=ENOSPC")
	if err != nil {
		fmt.Println(err)
		return
	}
	disk, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	d, err := block.Stack(disk, fault.Layer(script))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	ctx := context.Background()
	fmt.Println(d.ReadAt(ctx, make([]byte, 8192), 0))
	fmt.Println(d.WriteAt(ctx, make([]byte, 512), 0, 0))
	fmt.Println(errors.Is(d.WriteAt(ctx, make([]byte, 512), 0, 0), syscall.ENOSPC))
	// Output:
	// fault: read of 8192 bytes at 0: rule "read@4096+512=EIO": input/output error
	// <nil>
	// true
}
