package configs

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/test/harness"
)

// TestCommandLines serves the command lines of testdata.
func TestCommandLines(t *testing.T) {
	unixOnly(t)
	text := string(read(t, filepath.Join("testdata", "commandlines.txt")))
	n := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		n++
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			args, want, ok := strings.Cut(line, " -> ")
			if !ok {
				t.Fatalf("what is %q?", line)
			}
			t.Log(args)
			tryLine(t, args, strings.Fields(want))
		})
	}
	if n < 20 {
		t.Errorf("only %d command lines", n)
	}
}

func tryLine(t *testing.T, args string, want []string) {
	host := "127.0.0.1"
	for i, w := range want {
		if w == "at" {
			host, want = want[i+1], want[:i]
			break
		}
	}
	if l, err := net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
		t.Skipf("this machine has no address %s: %v", host, err)
	} else {
		l.Close()
	}
	c := &corpus{t: t, dir: harness.Dir(t)}
	full := make([]byte, 1<<20)
	c.write(c.path("disk"), full)
	c.write(c.path("parts.0"), full)
	c.write(c.path("parts.1"), append(full, full...))
	c.write(c.path("by-"+host), full)
	c.write(c.path("allow"), []byte("127.0.0.0/8\n::1\n"))
	c.write(c.path("deny"), []byte("10.0.0.1\n"))
	port := strconv.Itoa(harness.FreePort(t))
	line := strings.NewReplacer("PORT", port, "DIR", c.dir, "FILE", c.path("disk")).Replace(args)
	p := harness.Spawn(t, nil, harness.Binary(t), append(strings.Fields(line), "-n", "-C", c.path("none"))...)
	p.AwaitListening("tcp", net.JoinHostPort(host, port))
	uri := "nbd://" + net.JoinHostPort(host, port)
	if want[0] == "refused" {
		c.refused(t, uri)
	} else {
		_, size, flags := c.want(want[0])
		var cfg *client.Config
		for _, w := range want[1:] {
			if w == "oldstyle" {
				cfg = &client.Config{Oldstyle: true}
				continue
			}
			flags = append(flags, w)
		}
		c.found(t, uri, cfg, size, flags)
	}
	p.Stop()
	c.trySection(t, line, want)
	if _, err := os.Stat(c.path("pid")); !os.IsNotExist(err) {
		t.Errorf("the pid file is still there: %v", err)
	}
}

// trySection serves what -o prints for a command line. That says nothing of where to listen,
// so the client comes on a unix socket.
func (c *corpus) trySection(t *testing.T, line string, want []string) {
	t.Helper()
	if want[0] == "refused" || strings.Contains(line, "%s") {
		return // clients on a unix socket are let in, and have another address
	}
	out := harness.Run(t, harness.Binary(t), append(strings.Fields(line), "-C", c.path("none"), "-o", "section")...)
	c.write(c.config(), []byte("[generic]\nunixsock = "+c.path("sock")+"\n"+out))
	p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", c.config())
	p.AwaitListening("unix", c.path("sock"))
	var flags []string
	for _, w := range want[1:] {
		if w != "oldstyle" {
			flags = append(flags, w)
		}
	}
	_, size, _ := c.want(want[0])
	c.found(t, harness.UnixURI(c.path("sock"), "section"), nil, size, flags)
	p.Stop()
}
