package wine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

const mib = 1 << 20

// limit ends a test that hangs.
const limit = 2 * time.Minute

var serverFile = sync.OnceValues(func() (string, error) {
	return shared.made.build("nbd-server.exe", "build", module+"/cmd/nbd-server")
})

// server returns nbd-server for Windows.
func server(t *testing.T) string {
	t.Helper()
	file, err := serverFile()
	must(t, err)
	return file
}

// console is a server that runs in a console.
type console struct {
	*harness.Process
	port int
}

// quoted writes a path of Windows as configuration files want it.
func quoted(name string) string { return strings.ReplaceAll(name, `\`, `\\`) }

// config writes a configuration that listens on a port of the loopback address.
func config(t *testing.T, dir string, port int, exports string) string {
	t.Helper()
	file := filepath.Join(dir, "config")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "[generic]\nlistenaddr = 127.0.0.1\nport = %d\nallowlist = true\n%s", port, exports), 0o644))
	return file
}

// start starts a server in a console, and waits until it serves.
func start(t *testing.T, exports string) *console {
	t.Helper()
	s := windows(t)
	exe := server(t)
	c := &console{port: harness.FreePort(t)}
	file := config(t, harness.Dir(t), c.port, exports)
	c.Process = harness.Spawn(t, s.env(), s.wine, exe, "-C", path(file))
	c.AwaitListening("tcp", c.addr())
	return c
}

func (c *console) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)) }

func (c *console) uri(export string) string { return "nbd://" + c.addr() + "/" + export }

// end presses Ctrl-C, and wants the server to end well.
func (c *console) end(t *testing.T) {
	t.Helper()
	c.Signal(os.Interrupt)
	if err := c.Wait(); err != nil {
		t.Errorf("after Ctrl-C it ended by: %v", err)
	}
	for _, want := range []string{"serving", "shutting down"} {
		if !strings.Contains(c.Log(), want) {
			t.Errorf("its log does not say %q", want)
		}
	}
	for _, bad := range []string{"panic", "goroutine "} {
		if strings.Contains(c.Log(), bad) {
			t.Errorf("its log says %q", bad)
		}
	}
}

// disk makes an image full of noise and an export of it.
func disk(t *testing.T, seed uint64, size int) (file string, export string) {
	t.Helper()
	file = harness.Image(t, harness.Dir(t), "disk", harness.Random(seed, size))
	return file, "[disk]\nexportname = " + quoted(path(file)) + "\n"
}

func TestQemuIO(t *testing.T) {
	available(t)
	testgate.Requires(t, testgate.Program("qemu-io"))
	file, export := disk(t, 1, 16*mib)
	c := start(t, export)
	args := []string{"-f", "raw", "-t", "none"}
	for _, command := range []string{
		"write -P 0x41 0 1M", "write -P 0x42 5000000 70000", "write -z 512k 64k", "discard 768k 64k", "aio_write -P 0x43 8M 1M", "aio_flush", "flush",
		"read -P 0x41 0 512k", "read -P 0 512k 64k", "read -P 0x42 5000000 70000", "read -P 0x43 8M 1M", "write -f -P 0x44 10M 4k", "read -P 0x44 10M 4k",
	} {
		args = append(args, "-c", command)
	}
	out := harness.Run(t, "qemu-io", append(args, c.uri("disk"))...)
	for _, bad := range []string{"verification failed", "failed:", "error"} {
		if strings.Contains(out, bad) {
			t.Errorf("qemu-io says:\n%s", out)
			break
		}
	}
	c.end(t)
	got, err := os.ReadFile(file)
	must(t, err)
	if len(got) != 16*mib || got[0] != 0x41 || got[512<<10] != 0 || got[5000000] != 0x42 || got[9*mib-1] != 0x43 {
		t.Error("the file does not hold what was written")
	}
}

func TestNbdcopy(t *testing.T) {
	available(t)
	testgate.Requires(t, testgate.Program("nbdcopy"))
	want := harness.Sparse(2, 24*mib)
	file, export := disk(t, 3, len(want))
	c := start(t, export)
	dir := harness.Dir(t)
	harness.Run(t, "nbdcopy", "--flush", harness.Image(t, dir, "from", want), c.uri("disk"))
	to := filepath.Join(dir, "to")
	harness.Run(t, "nbdcopy", c.uri("disk"), to)
	harness.Same(t, to, want)
	c.end(t)
	harness.Same(t, file, want)
}

func TestFio(t *testing.T) {
	available(t)
	testgate.Requires(t, testgate.Output("nbd", "fio", "--enghelp"))
	_, export := disk(t, 4, 16*mib)
	c := start(t, export+"[memory]\nexportname = memory:16M\n")
	for _, x := range []struct{ export, rw, size, depth string }{
		{"disk", "randwrite", "4k", "32"}, {"disk", "randrw", "1536", "8"}, {"disk", "write", "1M", "4"}, {"memory", "randwrite", "4k", "64"},
	} {
		out := harness.Run(t, "fio", "--name=job", "--ioengine=nbd", "--uri="+c.uri(x.export), "--size=16M", "--thread",
			"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--randseed=7", "--output-format=json",
			"--rw="+x.rw, "--bs="+x.size, "--iodepth="+x.depth, "--fsync=64", "--io_size=16M")
		var result struct {
			Jobs []struct {
				Error       int
				Read, Write struct {
					Bytes int64 `json:"io_bytes"`
				}
			}
		}
		err := json.NewDecoder(strings.NewReader(out[max(strings.Index(out, "{\n"), 0):])).Decode(&result)
		if err != nil || len(result.Jobs) != 1 {
			t.Fatalf("fio: %v\n%s", err, out)
		}
		if j := result.Jobs[0]; j.Error != 0 || j.Write.Bytes == 0 || j.Read.Bytes == 0 {
			t.Errorf("%+v: %+v", x, j)
		}
	}
	c.end(t)
}

// device connects to an export.
func device(t *testing.T, uri string) *block.Device {
	t.Helper()
	conn, err := client.Dial(t.Context(), uri, nil)
	must(t, err)
	d, err := block.New(conn)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// await connects to an export that is about to appear.
func await(t *testing.T, uri string) *block.Device {
	t.Helper()
	late := time.After(limit)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := client.Dial(t.Context(), uri, nil)
		if err == nil {
			d, err := block.New(conn)
			must(t, err)
			t.Cleanup(func() { d.Close() })
			return d
		}
		select {
		case <-late:
			t.Fatalf("%s does not appear: %v", uri, err)
		case <-again.C:
		}
	}
}

// TestClient changes a disk at random, by our own client, next to a model of it.
func TestClient(t *testing.T) {
	available(t)
	file, export := disk(t, 5, 4*mib)
	c := start(t, export)
	d := device(t, c.uri("disk"))
	want := harness.Random(5, 4*mib)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 400 {
		off := r.IntN(len(want))
		n := 1 + r.IntN(min(200000, len(want)-off))
		part := want[off : off+n]
		var flags block.Flags
		if r.IntN(4) == 0 {
			flags = block.FUA
		}
		switch r.IntN(6) {
		case 0, 1:
			for i := range part {
				part[i] = byte(r.Uint32())
			}
			must(t, d.WriteAt(t.Context(), part, int64(off), flags))
		case 2:
			clear(part)
			must(t, d.WriteZeroes(t.Context(), int64(off), int64(n), flags))
		case 3:
			must(t, d.Flush(t.Context()))
		default:
			got := make([]byte, n)
			must(t, d.ReadAt(t.Context(), got, int64(off)))
			if !bytes.Equal(got, part) {
				t.Fatalf("%d bytes at %d differ", n, off)
			}
		}
	}
	if d.Size() != int64(len(want)) || d.Caps().ReadOnly {
		t.Errorf("%d bytes, read-only %t", d.Size(), d.Caps().ReadOnly)
	}
	must(t, d.Close())
	c.end(t)
	harness.Same(t, file, want)
}

// TestCtrlC ends a server while clients are connected, and takes no new ones.
func TestCtrlC(t *testing.T) {
	available(t)
	c := start(t, "[disk]\nexportname = memory:1M\n")
	d := device(t, c.uri("disk"))
	must(t, d.WriteAt(t.Context(), []byte("before"), 0, 0))
	c.end(t)
	if err := d.ReadAt(t.Context(), make([]byte, 6), 0); err == nil {
		t.Error("a server that has ended answers")
	}
	if conn, err := net.Dial("tcp", c.addr()); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
}

// TestRawDisk serves a volume by its device name, in both ways to write it.
func TestRawDisk(t *testing.T) {
	available(t)
	s := windows(t)
	want := harness.Random(6, 4*mib)
	file := harness.Image(t, harness.Dir(t), "volume", want)
	must(t, s.drive('v', file))
	size := fmt.Sprintf("\nfilesize = %d\n", len(want))
	c := start(t, "[disk]\nexportname = //./V:"+size+"[same]\nreadonly = true\nexportname = "+quoted(`\\.\V:`)+size)
	d := device(t, c.uri("disk"))
	got := make([]byte, len(want))
	must(t, d.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("the volume reads otherwise")
	}
	copy(want[1000:], "across a border of sectors"+strings.Repeat(".", 500))
	must(t, d.WriteAt(t.Context(), want[1000:1526], 1000, block.FUA))
	must(t, device(t, c.uri("same")).ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("after a write, the volume reads otherwise by its other name")
	}
	must(t, d.Close())
	c.end(t)
	harness.Same(t, file, want)
}

// TestCommandLine: what a console shows.
func TestCommandLine(t *testing.T) {
	available(t)
	s := windows(t)
	out, err := s.command(server(t), "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "nbd-server version") {
		t.Errorf("--version: %v, %q", err, out)
	}
	file, _ := disk(t, 7, mib)
	out, err = s.command(server(t), "-o", "x", "10809", path(file)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "exportname = "+quoted(path(file))) {
		t.Errorf("-o x: %v, %q", err, out)
	}
	out, err = s.command(server(t), "-C", path(filepath.Join(s.dir, "none")), strconv.Itoa(harness.FreePort(t)), `Z:\no\such\file`).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `no\\such\\file`) && !strings.Contains(string(out), `no\such\file`) {
		t.Errorf("a file that is not there: %v, %q", err, out)
	}
}
