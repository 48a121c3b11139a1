//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/test/harness"
)

// logged has a server log a few writes, and returns the log, and what the export then
// holds.
func logged(t *testing.T) (log string, whole []byte) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	s, _ := serve(t, "", "[a]\nexportname = memory:64K\ntransactionlog = "+log+"\ndatalog = true\n")
	c := dial(t, s, "a")
	whole = make([]byte, 64<<10)
	for i := range 10 {
		page := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		if err := c.WriteAt(t.Context(), page, int64(i)*5120, block.FUA); err != nil {
			t.Fatal(err)
		}
		copy(whole[i*5120:], page)
	}
	c.Close()
	s.Stop()
	return log, whole
}

// TestOldNames: by the names of the reference's tools the program takes their options.
func TestOldNames(t *testing.T) {
	log, whole := logged(t)
	dir := t.TempDir()
	run := func(stdin, name string, args ...string) (string, string, error) {
		t.Helper()
		link := filepath.Join(dir, name)
		if err := os.Symlink(harness.Tool(t, "nbd"), link); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		cmd := exec.Command(link, args...)
		var out, errs strings.Builder
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
		err := cmd.Run()
		return out.String(), errs.String(), err
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if out, errs, err := run(string(text), "nbd-trdump"); err != nil || out != must(t, "trdump", log) || errs != "" {
		t.Errorf("nbd-trdump: %v, %s\n%s", err, errs, out)
	}
	// The server may be writing the log.
	if out, errs, err := run(string(text[:len(text)-1]), "nbd-trdump"); err != nil || !strings.Contains(out, "NBD_CMD_WRITE") || !strings.HasPrefix(errs, "nbd-trdump: ") {
		t.Errorf("nbd-trdump of a log that is cut short: %v, %s", err, errs)
	}
	image := harness.Image(t, dir, "image", make([]byte, len(whole)))
	if out, errs, err := run("", "nbd-trplay", "-i", image, "-l", log, "-vv"); err != nil || errs != "" || strings.Count(out, "NBD_CMD_WRITE") != 10 {
		t.Errorf("nbd-trplay: %v, %s\n%s", err, errs, out)
	}
	harness.Same(t, image, whole)
	image = harness.Image(t, dir, "some", make([]byte, len(whole)))
	if _, errs, err := run("", "nbd-trplay", "-b", "0x1000", "-m", "2", "-i", image, "-l", log); err != nil {
		t.Errorf("nbd-trplay -m: %v, %s", err, errs)
	}
	clear(whole[2*5120:])
	harness.Same(t, image, whole)
	for _, x := range []struct {
		want string
		args []string
	}{
		{"nbd-trplay: -i, the image, and -l, the log", []string{"-i", image}},
		{"nbd-trplay: -m is 0", []string{"-i", image, "-l", log, "-m", "0"}},
		{"nbd-trplay: unknown shorthand flag", []string{"-x"}},
		{"no such file", []string{"-i", image, "-l", filepath.Join(dir, "nothing")}},
	} {
		if _, errs, err := run("", "nbd-trplay", x.args...); err == nil || !strings.Contains(errs, x.want) {
			t.Errorf("nbd-trplay %q: %v, %q, want %q", x.args, err, errs, x.want)
		}
	}
	if out, _, err := run("", "nbd-trplay", "-h"); err != nil || !strings.Contains(out, "--image") {
		t.Errorf("nbd-trplay -h: %v\n%s", err, out)
	}
}

// TestPlayOldstyle plays a log into an export of a server that speaks oldstyle negotiation.
func TestPlayOldstyle(t *testing.T) {
	log, whole := logged(t)
	port := harness.FreePort(t)
	s, _ := serve(t, "oldstyle = true\n", fmt.Sprintf("[copy]\nexportname = memory:64K\nport = %d\nlistenaddr = 127.0.0.1\n", port))
	must(t, "trplay", log, fmt.Sprintf("nbd://127.0.0.1:%d", port))
	refused(t, 1, "exports have no names", "trplay", log, fmt.Sprintf("nbd://127.0.0.1:%d/copy", port))
	got := make([]byte, len(whole))
	if err := dial(t, s, "copy").ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("the copy differs from what was logged: %v", err)
	}
}
