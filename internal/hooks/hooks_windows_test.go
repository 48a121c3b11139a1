package hooks

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCommandInterpreter: cmd.exe is given its line as it is, quotes and all.
func TestCommandInterpreter(t *testing.T) {
	h := begin(t, Config{})
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	spaced := filepath.Join(dir, "with a space & more")
	for _, c := range []struct {
		text, output string
		status       int // -2: success
	}{
		{"echo hello& echo world>&2", "hello\r\nworld", -2},
		{"exit 3", "", 3},
		{"echo why& exit 4", "why", 4},
		{"cd", filepath.VolumeName(os.Getenv("SystemRoot")) + `\`, -2},
		{"echo %NBD_TEST%", "value", -2},
		{`echo quoted "as it is"`, `quoted "as it is"`, -2},
		{"set /p x=& echo empty", "empty", -2},
		{`echo x>"` + spaced + `"&& if exist "` + spaced + `" echo made`, "made", -2},
	} {
		out, err := h.Run(within(t), Command{Text: c.text, Env: []string{"NBD_TEST=value"}})
		var f *Failed
		switch {
		case c.status == -2 && err != nil, c.status != -2 && !errors.As(err, &f):
			t.Errorf("%s: %v", c.text, err)
		case f != nil && (f.Status != c.status || f.Output != c.output):
			t.Errorf("%s: status %d, output %q", c.text, f.Status, f.Output)
		case out != c.output:
			t.Errorf("%s: output %q, want %q", c.text, out, c.output)
		}
	}
	if _, err := os.Stat(spaced); err != nil {
		t.Error(err)
	}
}

// hang returns a command whose child connects to it, and hangs.
func hang(t *testing.T) (Command, *net.TCPListener) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.SetDeadline(time.Now().Add(patience))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Command{Text: `"` + self + `" & echo not ended`, Env: []string{hanging + "=" + l.Addr().String()}}, l
}

// accept waits for the child.
func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// ended waits for the child's end.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the child of a command that was ended goes on")
	}
}

// TestChildren: with a command that nobody wants any more, its children are ended.
func TestChildren(t *testing.T) {
	h := begin(t, Config{})
	cmd, l := hang(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the client has gone")
	end := make(chan error, 1)
	go func() {
		_, err := h.Run(ctx, cmd)
		end <- err
	}()
	c := accept(t, l)
	cancel(why)
	if err := <-end; !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	ended(t, c)
}

// TestLeft: what a command leaves in the background goes on behind its end.
func TestLeft(t *testing.T) {
	h := begin(t, Config{})
	cmd, l := hang(t)
	cmd.Text = "start /b cmd /c " + cmd.Text
	if _, err := h.Run(within(t), cmd); err != nil {
		t.Error(err)
	}
	c := accept(t, l)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	c.Close()
}

// TestTooLong: also a command that takes too long is ended with its children.
func TestTooLong(t *testing.T) {
	h := begin(t, Config{})
	cmd, l := hang(t)
	cmd.Limit = 2 * time.Second
	got := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			got <- c
		}
		close(got)
	}()
	out, err := h.Run(within(t), cmd)
	if err == nil || !strings.Contains(err.Error(), "longer than 2s") || strings.Contains(out, "not ended") {
		t.Errorf("%q, %v", out, err)
	}
	l.SetDeadline(time.Now())
	if c := <-got; c != nil { // on a slow machine it was ended before
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		ended(t, c)
	}
}
