package interop

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

const logged = mib // bytes of the exports that are logged

// change writes and zeroes stretches of a server's export, over several connections
// at once, which overlap where overlap is set, and then flushes.
func change(t *testing.T, uri string, connections int, overlap bool) {
	t.Helper()
	var all sync.WaitGroup
	for i := range connections {
		c := dialSoon(t, uri)
		all.Go(func() {
			defer c.Close()
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			for range 150 {
				// Whole sectors: nbd-trplay takes nothing else.
				off, n := rng.Int64N(logged/512/2), 1+rng.Int64N(200)
				if !overlap {
					off, n = off/int64(connections)+int64(i)*(logged/512/int64(connections)), min(n, 60)
				}
				var err error
				switch off, n := off*512, n*512; rng.IntN(5) {
				case 0:
					err = c.WriteZeroes(t.Context(), off, n, block.NoHole)
				case 1:
					err = c.ReadAt(t.Context(), make([]byte, n), off)
				default:
					err = c.WriteAt(t.Context(), bytes.Repeat([]byte{byte(rng.Uint32())}, int(n)), off, block.Flags(rng.IntN(2))*block.FUA)
				}
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
			}
			if err := c.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// dialSoon connects to a server that may be starting.
func dialSoon(t *testing.T, uri string) *client.Conn {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, err := client.Dial(t.Context(), uri, nil)
		if err == nil {
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// dumps compares what our tool and the reference's print of a log.
func dumps(t *testing.T, log string) {
	t.Helper()
	in, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command(testgate.Find("nbd-trdump"))
	cmd.Stdin = in
	theirs, err := cmd.Output()
	if err != nil {
		t.Fatalf("nbd-trdump: %v", err)
	}
	ours := harness.Run(t, harness.Tool(t, "nbd"), "trdump", log)
	if ours != string(theirs) || len(theirs) < 1000 {
		t.Errorf("nbd trdump prints %d bytes, nbd-trdump %d", len(ours), len(theirs))
	}
}

// plays replays a log by both tools, and compares the images with want.
func plays(t *testing.T, log string, want []byte) {
	t.Helper()
	for name, args := range map[string][]string{
		"ours":   {harness.Tool(t, "nbd"), "trplay", log},
		"theirs": {testgate.Find("nbd-trplay"), "-l", log, "-i"},
	} {
		image := harness.Image(t, t.TempDir(), name, make([]byte, len(want)))
		harness.Run(t, args[0], append(args[1:], image)...)
		got, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the replayed image differs from the export", name)
		}
	}
}

// TestTransactionLog has our server log changes of four connections that overlap each
// other. The reference's tools must understand the log, and its replay, by either's
// tool, must lead to the contents of the export.
func TestTransactionLog(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbd-trdump", "nbd-trplay"))
	log := filepath.Join(t.TempDir(), "log")
	d := serveDisk(t, make([]byte, logged), "transactionlog = "+log, "datalog = true")
	change(t, d.URI("disk"), 4, true)
	d.Stop()
	got, err := os.ReadFile(d.image)
	if err != nil {
		t.Fatal(err)
	}
	dumps(t, log)
	plays(t, log, got)
	// And into an export.
	s := harness.Start(t, harness.Config{Exports: section("copy", "memory:1M")})
	harness.Run(t, harness.Tool(t, "nbd"), "trplay", log, s.URI("copy"))
	c, err := client.Dial(t.Context(), s.URI("copy"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	copied := make([]byte, logged)
	if err := c.ReadAt(t.Context(), copied, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(copied, got) {
		t.Error("the copy differs from the export")
	}
}

// TestReferenceLog reads and replays what the reference's server has logged.
func TestReferenceLog(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbd-trdump", "nbd-trplay"), testgate.Output("nbd-server version 3.", "/usr/bin/nbd-server", "-V"))
	dir := harness.Dir(t)
	image := harness.Image(t, dir, "disk.img", make([]byte, logged))
	log, sock, conf := filepath.Join(dir, "log"), filepath.Join(dir, "sock"), filepath.Join(dir, "conf")
	text := "[generic]\nunixsock = " + sock + "\n" +
		section("disk", image, "transactionlog = "+log, "datalog = true", "flush = true", "fua = true", "trim = true")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// With -d it serves one connection, and ends. More than one would be of no use:
	// the processes of two overwrite each other's records.
	p := harness.Spawn(t, nil, "/usr/bin/nbd-server", "-d", "-C", conf)
	change(t, harness.UnixURI(sock, "disk"), 1, true)
	if err := p.Wait(); err != nil {
		t.Logf("nbd-server ended by: %v", err)
	}
	got, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	dumps(t, log)
	plays(t, log, got)
}
