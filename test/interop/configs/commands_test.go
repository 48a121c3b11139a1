//go:build unix

package configs

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// pipe makes a named pipe, with which a command tells that it has begun, and by its end that
// it was ended, with all that it had started.
func pipe(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// begun opens a pipe, and waits until the command says that it has begun.
func begun(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := io.ReadFull(f, make([]byte, len("begun\n"))); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPreRunClientGone: a client that hangs up while prerun hangs takes it along, and leaves
// its place to others.
func TestPreRunClientGone(t *testing.T) {
	t.Parallel()
	dir := harness.Dir(t)
	fifo := pipe(t, dir, "f")
	s := harness.StartIn(t, dir, harness.Config{Exports: "[e]\nexportname = memory:8k\nmaxconnections = 1\n" +
		"prerun = test -e " + dir + "/second || { touch " + dir + "/second; exec 3> " + fifo + "; echo begun >&3; sleep 600; }\n"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		c, err := client.Dial(ctx, s.URI("e"), nil)
		if err == nil {
			c.Close()
		}
		ended <- err
	}()
	f := begun(t, fifo)
	cancel()
	if err := <-ended; err == nil {
		t.Error("the client was served")
	}
	if rest, err := io.ReadAll(f); err != nil || len(rest) > 0 {
		t.Errorf("the command goes on: %q, %v", rest, err)
	}
	await(t, s.Process, "the client has hung up", 1)
	dial(t, s.URI("e"), nil).Close()
}

// TestPostRunHangs: a postrun that does not end keeps neither the socket of its client nor
// the place.
func TestPostRunHangs(t *testing.T) {
	t.Parallel()
	dir := harness.Dir(t)
	hold := pipe(t, dir, "hold")
	s := harness.StartIn(t, dir, harness.Config{Exports: "[e]\nexportname = memory:8k\nmaxconnections = 1\npostrun_timeout = 300\n" +
		"postrun = test -e " + dir + "/second || { touch " + dir + "/second; cat " + hold + "; }\n"})
	dial(t, s.URI("e"), nil).Close()
	await(t, s.Process, "postrun takes long", 1)
	await(t, s.Process, "client disconnected", 1)
	dial(t, s.URI("e"), nil).Close()
	if err := os.WriteFile(hold, []byte("at last"), 0); err != nil {
		t.Fatal(err)
	}
	await(t, s.Process, "at last", 1)
}

// TestCommandLimits: commands that take too long are ended. A reload may change the limits
// alone.
func TestCommandLimits(t *testing.T) {
	t.Parallel()
	exports := "[pre]\nexportname = memory:8k\nprerun = sleep 600 | cat\nprerun_timeout = 1\n" +
		"[post]\nexportname = memory:8k\npostrun = sleep 600 | cat\npostrun_timeout = 1\n" +
		"[free]\nexportname = memory:8k\nprerun = sleep 2\nprerun_timeout = -1\n"
	s := harness.Start(t, harness.Config{Exports: exports})
	if c, err := client.Dial(t.Context(), s.URI("pre"), nil); err == nil {
		c.Close()
		t.Error("served although prerun was ended")
	}
	await(t, s.Process, "prerun: the command was ended, it took longer than 1s", 1)
	dial(t, s.URI("post"), nil).Close()
	await(t, s.Process, "postrun: the command was ended, it took longer than 1s", 1)
	dial(t, s.URI("free"), nil).Close()
	s.WriteConfig(t, "", strings.ReplaceAll(exports, "timeout = -1", "timeout = 1"))
	s.Signal(hangup)
	await(t, s.Process, `configuration taken over changed="\"free\"" kept=2`, 1)
	if c, err := client.Dial(t.Context(), s.URI("free"), nil); err == nil {
		c.Close()
		t.Error("served although prerun takes longer than the new limit")
	}
}

// killers are exports of which one ends the process that runs commands, one needs it, and
// one does not.
const killers = `[kill]
exportname = memory:8k
prerun = kill -9 $PPID
[e]
exportname = memory:8k
postrun = true
[free]
exportname = memory:8k
`

// TestHelperEnds: the end of the process that runs commands is told, and there is another one
// where there can be.
func TestHelperEnds(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Exports: killers})
	for range 2 {
		before := strings.Count(s.Log(), "helper process that runs commands has ended; another")
		if c, err := client.Dial(t.Context(), s.URI("kill"), nil); err == nil {
			c.Close()
			t.Error("served although its command did not end")
		}
		await(t, s.Process, "helper process that runs commands has ended; another", before+1)
		dial(t, s.URI("e"), nil).Close()
		await(t, s.Process, "another helper process that runs commands was started", before+1)
	}
}

// TestHelperEndsForGood: where there cannot be another one, who needs it is refused, and
// nobody else.
func TestHelperEndsForGood(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Root())
	t.Parallel()
	dir := harness.Dir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	s := harness.StartIn(t, dir, harness.Config{Generic: "user = nobody\nrun_user = root",
		Exports: killers})
	for _, name := range []string{"kill", "e"} {
		if c, err := client.Dial(t.Context(), s.URI(name), nil); err == nil {
			c.Close()
			t.Errorf("%s is served", name)
		}
	}
	await(t, s.Process, "there is no other until the server is restarted", 1)
	dial(t, s.URI("free"), nil).Close()
}

// TestPreRunRenamesLog: a prerun may take the transaction log away, so that clients which
// come one after the other have logs of their own.
func TestPreRunRenamesLog(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	s := harness.StartIn(t, dir, harness.Config{Exports: strings.ReplaceAll(`[e]
exportname = memory:1M
transactionlog = DIR/log
prerun = mv DIR/log "$(mktemp DIR/one.XXXXXX)"
`, "DIR", dir)})
	const clients = 3
	for i := range clients {
		c := dial(t, s.URI("e"), nil)
		for j := range i + 1 {
			if err := c.WriteAt(t.Context(), make([]byte, 512), int64(j)*512, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s.Stop()
	files, err := filepath.Glob(filepath.Join(dir, "one.*"))
	if err != nil || len(files) != clients {
		t.Fatalf("%d logs, %v; want one for each of %d clients", len(files), err, clients)
	}
	var writes []int
	for _, file := range files {
		out := harness.Run(t, harness.Tool(t, "nbd"), "trdump", file)
		writes = append(writes, strings.Count(out, "NBD_CMD_WRITE"))
	}
	slices.Sort(writes)
	if !slices.Equal(writes, []int{1, 2, 3}) {
		t.Errorf("the logs have %v writes, want those of one client each", writes)
	}
}
