package configs

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// qemuIO runs commands of qemu-io on an export, one connection for all.
func qemuIO(t *testing.T, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	// A pattern that is not there is no failure to old versions.
	if out := harness.Run(t, "qemu-io", append(args, uri)...); strings.Contains(out, "failed") {
		t.Errorf("qemu-io %q: %s", commands, out)
	}
}

// TestKeysByOthers: what the keys of an export do, as qemu-io and nbdinfo see it.
func TestKeysByOthers(t *testing.T) {
	unixOnly(t)
	testgate.Requires(t, testgate.Program("qemu-io", "nbdinfo"))
	t.Parallel()
	dir := harness.Dir(t)
	full := bytes.Repeat([]byte("d"), 1<<20)
	for _, name := range []string{"disk", "parts.0", "parts.1", "deny"} {
		content := full
		if name == "deny" {
			content = []byte("10.0.0.0/8\n")
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := harness.StartIn(t, dir, harness.Config{TCP: true, Exports: strings.ReplaceAll(`[cow]
exportname = DIR/disk
copyonwrite = true
[temporary]
exportname = DIR/temporary.XXXXXX
temporary = true
filesize = 1048576
[multi]
exportname = DIR/parts
multifile = true
[tree]
exportname = DIR/tree
treefiles = true
filesize = 1048576
[short]
exportname = DIR/disk
filesize = 4096
readonly = true
[one]
exportname = memory:1M
maxconnections = 1
[deny]
exportname = memory:1M
authfile = DIR/deny
`, "DIR", dir)})

	// Each connection has a diff, or a file, of its own.
	for name, old := range map[string]string{"cow": "0x64", "temporary": "0"} {
		for range 2 {
			qemuIO(t, s.URI(name), "read -P "+old+" 0 1M", "write -P 0x5a 64k 4k", "read -P 0x5a 64k 4k", "read -P "+old+" 68k 4k")
		}
	}
	harness.Same(t, filepath.Join(dir, "disk"), full)
	if left, err := filepath.Glob(filepath.Join(dir, "temporary*")); err != nil || len(left) > 0 {
		t.Errorf("left are %q, %v", left, err)
	}

	qemuIO(t, s.URI("multi"), "write -P 0x5a 1020k 8k", "read -P 0x5a 1020k 8k", "read -P 0x64 1028k 1020k", "flush")
	for name, at := range map[string]int{"parts.0": 1020 << 10, "parts.1": 0} {
		want := bytes.Clone(full)
		copy(want[at:], bytes.Repeat([]byte{0x5a}, 4096))
		harness.Same(t, filepath.Join(dir, name), want)
	}

	qemuIO(t, s.URI("tree"), "write -P 0x5a 4k 8k", "read -P 0 0 4k", "read -P 0x5a 4k 8k", "read -P 0 12k 1012k", "flush")
	files := 0
	err := filepath.WalkDir(filepath.Join(dir, "tree"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files++
			harness.Same(t, path, bytes.Repeat([]byte{0x5a}, 4096))
		}
		return err
	})
	if err != nil || files != 2 {
		t.Errorf("the tree has %d files, %v; want one for each of two blocks", files, err)
	}

	for name, want := range map[string]string{"short": "4096", "multi": "2097152", "tree": "1048576", "temporary": "1048576"} {
		if got := size(t, s.URI(name)); got != want {
			t.Errorf("%s has %s bytes, want %s", name, got, want)
		}
	}

	tcp := fmt.Sprintf("nbd://127.0.0.1:%d/", s.Port)
	harness.Refused(t, "nbdinfo", "--size", tcp+"deny")
	harness.Run(t, "nbdinfo", "--size", tcp+"cow")
	harness.Run(t, "nbdinfo", "--size", s.URI("deny")) // a unix socket has its mode

	c := dial(t, s.URI("one"), nil)
	if said := harness.Refused(t, "nbdinfo", "--size", s.URI("one")); !strings.Contains(said, "policy") {
		t.Errorf("the second client is told %q", said)
	}
	c.Close()
	for late := time.Now().Add(patience); ; {
		_, said, err := harness.Command(t, "", "nbdinfo", "--size", s.URI("one"))
		if err == nil {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("the place is not free again: %v, %s", err, said)
		}
	}
}

// TestDiffs: the diff of a connection is in cowdir, or else beside the file; it has each
// block at its own offset with sparse_cow, and one behind the other without.
func TestDiffs(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	t.Parallel()
	dir := harness.Dir(t)
	if err := os.Mkdir(filepath.Join(dir, "diffs"), 0o700); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	export := func(name string, lines ...string) string {
		return "[" + name + "]\nexportname = " + disk + "\ncopyonwrite = true\n" + strings.Join(lines, "\n") + "\n"
	}
	s := harness.StartIn(t, dir, harness.Config{Exports: export("beside") + export("dir", "cowdir = "+dir+"/diffs") + export("sparse", "sparse_cow = true", "cowdir = "+dir+"/diffs")})
	for _, c := range []struct {
		name, folder string
		sparse       bool
	}{{"beside", dir, false}, {"dir", dir + "/diffs", false}, {"sparse", dir + "/diffs", true}} {
		conn := dial(t, s.URI(c.name), nil)
		if err := conn.WriteAt(t.Context(), bytes.Repeat([]byte("new!"), 1024), 3<<20, 0); err != nil {
			t.Fatal(err)
		}
		folder, long := diff(t, s.PID(), disk)
		if folder != c.folder || (long > 3<<20) != c.sparse || long < 4096 {
			t.Errorf("%s: the diff is in %s and %d bytes long; want it in %s, sparse: %v", c.name, folder, long, c.folder, c.sparse)
		}
		conn.Close()
		for late := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) { // no message says when
			if folder, _ := diff(t, s.PID(), disk); folder == "" {
				break
			}
			if time.Now().After(late) {
				t.Fatalf("%s: the diff outlives its connection", c.name)
			}
		}
	}
}

// diff finds the nameless file that a process keeps beside the files of its exports.
func diff(t *testing.T, pid int, disk string) (folder string, size int64) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !strings.HasSuffix(to, " (deleted)") || !strings.HasPrefix(to, filepath.Dir(disk)+"/") {
			continue
		}
		info, err := os.Stat(link)
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(to), info.Size()
	}
	return "", 0
}
