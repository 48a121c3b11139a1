package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// qemuURI names an export as qemu wants it.
func qemuURI(s *harness.Server, export string) string {
	return "nbd:unix:" + s.Socket + ":exportname=" + export
}

func TestQemuInfo(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	d := serveDisk(t, harness.Sparse(40, 8*mib))
	for _, name := range []string{d.URI("disk"), qemuURI(d.Server, "disk")} {
		var i struct {
			Size   int64 `json:"virtual-size"`
			Format string
		}
		out := harness.Run(t, "qemu-img", "info", "--output=json", name)
		if err := json.Unmarshal([]byte(out), &i); err != nil || i.Size != 8*mib || i.Format != "raw" {
			t.Errorf("qemu-img info: %v\n%s", err, out)
		}
	}
}

func TestQemuMap(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	d := serveDisk(t, harness.Sparse(41, 8*mib))
	var rows []struct {
		Start, Length int64
		Zero, Data    bool
	}
	out := harness.Run(t, "qemu-img", "map", "-f", "raw", "--output=json", d.URI("disk"))
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(rows) != 8 {
		t.Fatalf("%d rows, want 8:\n%s", len(rows), out)
	}
	for i, r := range rows {
		hole := i%2 == 1
		if r.Start != int64(i)*mib || r.Length != mib || r.Zero != hole || r.Data == hole {
			t.Errorf("row %d of the map is %+v", i, r)
		}
	}
}

func TestQemuConvert(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	want := harness.Sparse(42, 32*mib)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"default", nil},
		{"out of order", []string{"-W", "-m", "16"}},
		{"no cache", []string{"-t", "none", "-T", "none"}},
		{"write through", []string{"-t", "writethrough"}},
		{"all data", []string{"-S", "0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := serveDisk(t, harness.Random(43, len(want)))
			from := harness.Image(t, d.Dir, "from", want)
			up := append([]string{"convert", "-n", "-f", "raw", "-O", "raw"}, c.args...)
			harness.Run(t, "qemu-img", append(up, from, d.URI("disk"))...)
			harness.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", from, d.URI("disk"))

			qcow2 := filepath.Join(d.Dir, "to.qcow2")
			harness.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", d.URI("disk"), qcow2)
			harness.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", from, qcow2)
			d.Stop()
			harness.Same(t, d.image, want)
		})
	}
}

func TestQemuCompareFindsDifference(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	d := serveDisk(t, harness.Sparse(44, 4*mib))
	other := append([]byte(nil), d.data...)
	other[3*mib+100] ^= 1
	file := harness.Image(t, d.Dir, "other", other)
	if said := harness.Refused(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, d.URI("disk")); !strings.Contains(said, "mismatch") {
		t.Errorf("qemu-img compare says %q", said)
	}
}

// TestQemuQcow2 keeps an image in qemu's own format on an export: much small and
// unaligned work, with flushes.
func TestQemuQcow2(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img", "qemu-io"))
	s := harness.Start(t, harness.Config{Exports: section("disk", "memory:64M")})
	harness.Run(t, "qemu-img", "create", "-f", "qcow2", s.URI("disk"), "32M")
	qemuIO(t, "qcow2", s.URI("disk"),
		"write -P 0x41 0 1M", "write -P 0x42 5000000 70000", "write -z 512k 64k", "discard 768k 64k", "flush",
		"read -P 0x41 0 512k", "read -P 0 512k 64k", "read -P 0x42 5000000 70000")
	harness.Run(t, "qemu-img", "check", "-f", "qcow2", s.URI("disk"))
}

func TestQemuDd(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	d := serveDisk(t, harness.Random(45, 4*mib))
	to := filepath.Join(d.Dir, "to")
	harness.Run(t, "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=64k", "count=8", "skip=3",
		"if="+d.URI("disk"), "of="+to)
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	// This dd counts blocks from the start of its input.
	if want := d.data[3*64<<10 : 8*64<<10]; string(got) != string(want) {
		t.Errorf("qemu-img dd copied %d other bytes, want %d", len(got), len(want))
	}
}

// qemuIO runs commands of qemu-io. It succeeds also where a pattern does not match,
// so its words are judged.
func qemuIO(t *testing.T, format, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", format, "-t", "none"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := harness.Run(t, "qemu-io", append(args, uri)...)
	for _, bad := range []string{"verification failed", "failed:", "error"} {
		if strings.Contains(out, bad) {
			t.Errorf("qemu-io %q says:\n%s", commands, out)
			return
		}
	}
}

func TestQemuIO(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-io"))
	for _, c := range []struct {
		name     string
		commands []string
	}{
		{"patterns", []string{"write -P 1 0 64k", "write -P 2 64k 64k", "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 1 32k 32k"}},
		{"unaligned", []string{"write -P 7 1 3", "write -P 8 1234567 7654", "read -P 7 1 3", "read -P 8 1234567 7654", "read -P 0 1234560 7"}},
		{"unaligned end", []string{"write -P 9 8388600 8", "read -P 9 8388600 8"}},
		{"force unit access", []string{"write -f -P 3 4k 4k", "read -P 3 4k 4k", "flush"}},
		{"zeroes", []string{"write -P 4 0 1M", "write -z 4k 8k", "read -P 4 0 4k", "read -P 0 4k 8k", "read -P 4 12k 4k"}},
		{"zeroes, may unmap", []string{"write -P 4 0 1M", "write -z -u 64k 512k", "read -P 0 64k 512k", "read -P 4 0 64k"}},
		{"zeroes, fast or not at all", []string{"write -z 0 4M", "read -P 0 0 4M"}},
		{"discard", []string{"write -P 5 0 1M", "discard 256k 256k", "read -P 5 0 256k", "read -P 5 512k 512k", "flush"}},
		{"asynchronous", []string{"aio_write -P 6 0 1M", "aio_write -P 7 1M 1M", "aio_flush", "aio_read -P 6 0 1M", "aio_read -P 7 1M 1M", "aio_flush"}},
		{"large", []string{"write -P 8 0 8M", "read -P 8 0 8M"}},
		{"vectors", []string{"writev -P 9 0 4k 8k 12k", "readv -P 9 0 12k 12k"}},
	} {
		for _, kind := range []string{"file", "memory", "cow"} {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				t.Parallel()
				qemuIO(t, "raw", serveKind(t, kind).URI("disk"), c.commands...)
			})
		}
	}
}

// serveKind serves 8 MiB of zeroes as "disk": a file, memory, or a file below
// copy-on-write.
func serveKind(t *testing.T, kind string) *harness.Server {
	t.Helper()
	switch kind {
	case "memory":
		return harness.Start(t, harness.Config{Exports: section("disk", "memory:8M")})
	case "cow":
		return serveDisk(t, make([]byte, 8*mib), "copyonwrite = true").Server
	}
	return serveDisk(t, make([]byte, 8*mib)).Server
}

// TestQemuReadOnly is refused where qemu wants to write, and reads where not.
func TestQemuReadOnly(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-io"))
	d := serveDisk(t, make([]byte, 4*mib), "readonly = true")
	harness.Run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 4M", d.URI("disk"))
	harness.Refused(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", d.URI("disk"))
}

// TestQemuDepth reads the allocation depth of a copyonwrite export the way qemu
// offers it to its own commands.
func TestQemuDepth(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	d := serveDisk(t, harness.Random(46, 4*mib), "copyonwrite = true")
	opts := fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=disk,x-dirty-bitmap=qemu:allocation-depth", d.Socket)
	out := harness.Run(t, "qemu-img", "map", "--output=json", "--image-opts", opts)
	var rows []struct{ Start, Length int64 }
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var end int64
	for _, r := range rows {
		end = r.Start + r.Length
	}
	if end != 4*mib {
		t.Errorf("the map ends at %d:\n%s", end, out)
	}
}
