package configs

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestExchange: what the reference has written as treefiles and as multifile, ours
// reads under the same configuration, and the other way round.
func TestExchange(t *testing.T) {
	testgate.Requires(t, testgate.Output("nbd-server version 3.", "nbd-server", "-V"))
	unixOnly(t)
	for _, kind := range []string{"treefiles", "multifile"} {
		for _, first := range []string{"reference", "ours"} {
			t.Run(kind+", "+first+" first", func(t *testing.T) {
				t.Parallel()
				c := &corpus{t: t, dir: harness.Dir(t), ports: map[string]int{}}
				c.mkdir(c.path("/run"))
				c.mkdir(c.path("/tree"))
				for i, size := range []int{64 << 10, 128 << 10} {
					c.write(c.path(fmt.Sprintf("/parts.%d", i)), make([]byte, size))
				}
				export := map[string]string{
					"treefiles": c.path("/tree") + "\ntreefiles = true\nfilesize = 16777216",
					"multifile": c.path("/parts") + "\nmultifile = true",
				}[kind]
				c.write(c.config(), []byte("[generic]\nunixsock = "+c.path("/run/nbd.sock")+"\n[e]\nexportname = "+export+"\n"))
				ours := func(f func()) {
					p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", c.config())
					p.AwaitListening("unix", filepath.Join(c.dir, "run", "nbd.sock"))
					f()
					p.Stop()
				}
				one, two := ours, func(f func()) { c.byReference(t, f) }
				if first == "reference" {
					one, two = two, one
				}
				one(func() { c.blocks(t, true) })
				two(func() { c.blocks(t, false) })
			})
		}
	}
}

// blocks writes some blocks of the export, or reads them and compares.
func (c *corpus) blocks(t *testing.T, write bool) {
	t.Helper()
	conn := dial(t, c.uri("e"), nil)
	defer conn.Close()
	for i, off := range []int64{0, 4096, 60 << 10, 68 << 10, conn.Size() - 4096} {
		want := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		if write {
			if err := conn.WriteAt(t.Context(), want, off, 0); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got := make([]byte, 4096)
		if err := conn.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("at %d: %x, %v; want %x", off, got[:4], err, want[:4])
		}
	}
}
