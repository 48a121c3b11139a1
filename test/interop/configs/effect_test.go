package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// openFlags returns the flags that a process has a file open with, from Linux.
func openFlags(t *testing.T, pid int, file string) (all []uint64) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != file {
			continue
		}
		info := string(read(t, strings.Replace(link, "/fd/", "/fdinfo/", 1)))
		_, rest, _ := strings.Cut(info, "flags:")
		rest, _, _ = strings.Cut(rest, "\n")
		flags, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 64)
		if err != nil {
			t.Fatalf("%s: %v", info, err)
		}
		all = append(all, flags)
	}
	return all
}

// TestSync: the file is open so that the system makes each write stable before it
// returns, where the key is set, and nowhere else.
func TestSync(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	t.Parallel()
	dir := harness.Dir(t)
	const stable = 0o10000 // O_DSYNC
	var text strings.Builder
	for name, key := range map[string]string{
		"plain": "", "sync": "sync = true\n", "chain": "sync = true\n", "parts": "multifile = true\n", "parts-sync": "multifile = true\nsync = true\n",
	} {
		file := filepath.Join(dir, name)
		if strings.HasPrefix(name, "parts") {
			if err := os.WriteFile(file+".0", make([]byte, 8192), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(file, make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "chain" {
			file = "file:" + file + " | offset:4096"
		}
		fmt.Fprintf(&text, "[%s]\nexportname = %s\n%s", name, file, key)
	}
	s := harness.StartIn(t, dir, harness.Config{Exports: text.String()})
	for name, want := range map[string]bool{"plain": false, "sync": true, "chain": true, "parts": false, "parts-sync": true} {
		c := dial(t, s.URI(name), nil)
		if err := c.WriteAt(t.Context(), []byte("stable"), 0, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
		file := filepath.Join(dir, name)
		if strings.HasPrefix(name, "parts") {
			file += ".0"
		}
		all := openFlags(t, s.PID(), file)
		if len(all) == 0 {
			t.Errorf("%s: the server does not have the file open", name)
		}
		for _, flags := range all {
			if got := flags&stable != 0; got != want {
				t.Errorf("%s: open with the flags %#o, stable writes: %v, want %v", name, flags, got, want)
			}
		}
	}
}

// TestMaxThreads: no more requests of a connection wait for the disk than the key
// says. So a few slow ones take together at least what they take one by one; that
// they take longer on a busy machine does no harm.
func TestMaxThreads(t *testing.T) {
	unixOnly(t)
	testgate.Requires(t, testgate.Program("nbdsh"))
	t.Parallel()
	const (
		requests = 8
		each     = 100 * time.Millisecond
	)
	s := harness.Start(t, harness.Config{Generic: "max_threads = 1", Exports: "[slow]\nexportname = memory:1M | delay:read=" + each.String() + "\n"})
	out := harness.Run(t, "nbdsh", "-c", fmt.Sprintf(`
import time
h.connect_uri("%s")
begin = time.monotonic()
left = [h.aio_pread(nbd.Buffer(512), 512 * i) for i in range(%d)]
while left:
    h.poll(-1)
    left = [c for c in left if not h.aio_command_completed(c)]
print(int((time.monotonic() - begin) * 1e9))
h.shutdown()
`, s.URI("slow"), requests))
	took, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil || time.Duration(took) < requests*each {
		t.Errorf("%d requests of %v took %v together: more than one was under way; %v", requests, each, time.Duration(took), err)
	}
}
