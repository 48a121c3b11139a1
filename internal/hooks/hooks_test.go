package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
)

func TestMain(m *testing.M) {
	if Main() || hangs() {
		return
	}
	os.Exit(m.Run())
}

// hanging has the address that a child of a command connects to, for as long as it lives.
const hanging = "NBD_HOOKS_TEST_HANG"

// hangs reports whether this process is such a child, when it is told to end.
func hangs() bool {
	addr := os.Getenv(hanging)
	if addr == "" {
		return false
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		io.Copy(io.Discard, c)
	}
	return true
}

// patience ends a test that is stuck.
const patience = time.Minute

func begin(t *testing.T, c Config) *Helper {
	t.Helper()
	h, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Close()
		select {
		case <-h.ended:
		case <-time.After(patience):
			t.Error("the helper does not end")
		}
	})
	return h
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func unixOnly(t *testing.T) {
	testgate.Requires(t, testgate.Own("", func() string {
		if runtime.GOOS == "windows" {
			return "needs a shell of Unix"
		}
		return ""
	}))
}

func TestRun(t *testing.T) {
	unixOnly(t)
	h := begin(t, Config{})
	for _, c := range []struct {
		text, output string
		status       int // -2: success
	}{
		{"echo hello; echo world >&2", "hello\nworld", -2},
		{"exit 3", "", 3},
		{"echo why; exit 4", "why", 4},
		{"kill -9 $$", "", -1},
		{"pwd", "/", -2},
		{"read x; echo \"$? $x\"", "1 ", -2},
		{`echo "$NBD_TEST $LISTEN_FDS"`, "value ", -2},
		{"/nonexistent/command 2>/dev/null", "", 127},
		{"sleep 3 & echo left", "left", -2},
	} {
		t.Setenv("LISTEN_FDS", "1")
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
}

// TestOutputBound: a command that says much is not kept whole.
func TestOutputBound(t *testing.T) {
	unixOnly(t)
	h := begin(t, Config{})
	out, err := h.Run(within(t), Command{Text: "i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i+1)); done; echo end"})
	if err != nil || len(out) > maxOutput+8 || !strings.HasSuffix(out, "0123456789\nend") || !strings.HasPrefix(out, "…") {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	var x tail
	x.Write(bytes.Repeat([]byte("a"), 3*maxOutput))
	x.Write([]byte("b"))
	if s := x.String(); len(s) != maxOutput+len("…") || !strings.HasSuffix(s, "ab") {
		t.Errorf("kept %d bytes", len(s))
	}
}

// TestMany: commands run side by side: each waits until all have begun.
func TestMany(t *testing.T) {
	unixOnly(t)
	h := begin(t, Config{})
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			text := fmt.Sprintf("touch %s/%d; while [ $(ls %s | wc -l) -lt 8 ]; do sleep 0.05; done; echo %d", dir, i, dir, i)
			if out, err := h.Run(within(t), Command{Text: text}); err != nil || out != fmt.Sprint(i) {
				t.Errorf("%d: %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
}

// TestCancel: a command that nobody wants any more is ended, with its children.
func TestCancel(t *testing.T) {
	unixOnly(t)
	h := begin(t, Config{})
	fifo := filepath.Join(t.TempDir(), "f")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the client has gone")
	go func() {
		os.ReadFile(fifo) // the command has begun
		cancel(why)
	}()
	// Not only the shell, but its children are ended, too.
	if _, err := h.Run(ctx, Command{Text: "echo > " + fifo + "; sleep 600 | cat"}); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
}

// TestLimit: a command that takes too long is ended, with its children, and only that one.
func TestLimit(t *testing.T) {
	unixOnly(t)
	h := begin(t, Config{})
	_, err := h.Run(within(t), Command{Text: "sleep 600 | cat", Limit: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "longer than 1ms") {
		t.Errorf("a command that takes too long: %v", err)
	}
	if out, err := h.Run(within(t), Command{Text: "echo done", Limit: time.Hour}); err != nil || out != "done" {
		t.Errorf("a command within its limit: %q, %v", out, err)
	}
}

// TestLimitAlone: the helper ends what takes too long also when nobody wants to know.
func TestLimitAlone(t *testing.T) {
	unixOnly(t)
	h := begin(t, Config{})
	fifo := filepath.Join(t.TempDir(), "f")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	go h.Run(t.Context(), Command{Text: "exec 3> " + fifo + "; echo begun >&3; sleep 600", Limit: time.Second})
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	h.Close()
	// It ends when the command and all that it has started have closed it.
	if rest, err := io.ReadAll(f); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	<-h.Ended()
}

// TestGone: commands fail when the helper has died, and nobody waits for ever.
func TestGone(t *testing.T) {
	unixOnly(t)
	h := begin(t, Config{})
	if _, err := h.Run(within(t), Command{Text: "kill -9 $PPID"}); !errors.Is(err, ErrGone) {
		t.Errorf("the helper was killed: %v", err)
	}
	<-h.Ended()
	if why := h.Why(); !strings.Contains(why, "killed") {
		t.Errorf("it ended because %q", why)
	}
	if _, err := h.Run(within(t), Command{Text: "true"}); !errors.Is(err, ErrGone) {
		t.Errorf("a command for nobody: %v", err)
	}
}

// slowPipe takes messages one by one, when it is told to.
type slowPipe struct{ begun, goOn chan struct{} }

func (p slowPipe) Write(b []byte) (int, error) {
	p.begun <- struct{}{}
	<-p.goOn
	return len(b), nil
}

func (slowPipe) Close() error { return nil }

// TestReplyWhileSending: replies are read while a message cannot be sent. Else the
// helper, which may have to get rid of one before it reads, and its server would wait
// for each other for ever.
func TestReplyWhileSending(t *testing.T) {
	p := slowPipe{make(chan struct{}), make(chan struct{})}
	h := &Helper{cmd: &exec.Cmd{}, in: p, waiting: make(map[uint64]chan reply), ended: make(chan struct{})}
	out, replies := io.Pipe()
	go h.listen(out)
	run := func() <-chan error {
		end := make(chan error, 1)
		go func() {
			_, err := h.Run(context.Background(), Command{Text: "true"})
			end <- err
		}()
		<-p.begun
		return end
	}
	one := run()
	p.goOn <- struct{}{}
	two := run() // stuck in the pipe
	fmt.Fprintln(replies, `{"ID":1}`)
	select {
	case err := <-one:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("a reply is not read while a message is on its way")
	}
	p.goOn <- struct{}{}
	fmt.Fprintln(replies, `{"ID":2}`)
	if err := <-two; err != nil {
		t.Error(err)
	}
	replies.Close()
	<-h.ended
}

// TestUser: the helper is somebody else, and cannot go back.
func TestUser(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Root())
	h := begin(t, Config{User: "nobody"})
	if out, err := h.Run(within(t), Command{Text: "id -u; id -g; id -G; [ -w /etc/passwd ] || echo safe"}); err != nil || out != "65534\n65534\n65534\nsafe" {
		t.Errorf("%q, %v", out, err)
	}
	h = begin(t, Config{User: "65534", Group: "disk"})
	if out, err := h.Run(within(t), Command{Text: "id -u; id -gn"}); err != nil || out != "65534\ndisk" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := Start(Config{User: "no-such-user"}); err == nil || !strings.Contains(err.Error(), "no-such-user") {
		t.Errorf("a user that does not exist: %v", err)
	}
}

// FuzzHelper feeds a helper with lines. It must answer each command that it
// understands, and end.
func FuzzHelper(f *testing.F) {
	f.Add("{\"Config\":{}}\n{\"ID\":1,\"Kill\":true}\n")
	f.Add("{\"Config\":{\"User\":\"no-such-user\"}}\n")
	f.Add("{}\nrubbish\n")
	f.Fuzz(func(t *testing.T, in string) {
		var out bytes.Buffer
		// Nothing that the fuzzer invents is run, and nobody becomes who it says.
		s := server{out: &out, become: func(*Config) error { return nil }, shell: func(string) *exec.Cmd { return exec.Command("/nonexistent") }}
		s.serve(strings.NewReader(in))
		for line := range strings.Lines(out.String()) {
			var r reply
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Errorf("answered %q: %v", line, err)
			}
		}
	})
}
