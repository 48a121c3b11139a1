//go:build unix

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// TestAuthFileNow changes nothing but the list: whoever was taken out is kept out, and
// whoever was put in is let in, without a signal. What nobody can understand lets nobody in.
func TestAuthFileNow(t *testing.T) {
	dir := harness.Dir(t)
	sock := filepath.Join(dir, "s")
	list := filepath.Join(dir, "list")
	write(t, dir, "list", "127.0.0.1\n")
	write(t, dir, "c.conf", "[generic]\nport = 0\nlistenaddr = 127.0.0.1\nunixsock = "+sock+"\nduallisten = true\nallowlist = true\n[a]\nexportname = memory:1M\nauthfile = "+list+"\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	_, port, _ := strings.Cut(p.await("listening="), " 127.0.0.1:")
	port, _, _ = strings.Cut(port, `"`)
	uri := "nbd://127.0.0.1:" + port
	in := func(want bool) {
		t.Helper()
		c, err := connect(t, uri+"/a")
		if (err == nil) != want {
			t.Errorf("by TCP: %v; want to be let in: %v", err, want)
		}
		if err == nil {
			c.Close()
		}
		if exports := listed(t, strings.TrimPrefix(uri, "nbd://")); len(exports) == 1 != want {
			t.Errorf("listed: %v; want the export: %v", exports, want)
		}
		mustConnect(t, harness.UnixURI(sock, "a")).Close()
	}
	in(true)
	stays := mustConnect(t, uri+"/a")
	for _, c := range []struct {
		text string
		want bool
	}{
		{"127.0.0.2\n", false}, // as long as before
		{"127.0.0.0/8\n", true},
		{"", false},
		{"127.0.0.1\n", true},
	} {
		write(t, dir, "list", c.text)
		in(c.want)
	}
	// Another file takes its place, as editors do it.
	write(t, dir, "new", "127.0.0.3\n")
	if err := os.Rename(filepath.Join(dir, "new"), list); err != nil {
		t.Fatal(err)
	}
	in(false)
	write(t, dir, "list", "127.0.0.1\n127.0.0.x\n")
	in(false)
	if line := p.await("the list of clients cannot be used; until it is right nobody is let in who has an address export=a"); !strings.Contains(line, list+":2: ") {
		t.Error(line)
	}
	write(t, dir, "list", "127.0.0.1\n")
	in(true)
	p.await("the list of clients was read anew export=a")
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	in(true)
	if err := stays.Flush(t.Context()); err != nil {
		t.Errorf("who was there before: %v", err)
	}
	p.stop()
}

// listed asks for the list of exports.
func listed(t *testing.T, addr string) []proto.ServerReply {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c, err := handshake.NewClient(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}
