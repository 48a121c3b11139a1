package configs

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestLikeReference serves each file by the reference, and by ours, and wants both
// to offer the same sizes, and the same exports to be read-only. Of what else is
// offered, ours may offer more.
func TestLikeReference(t *testing.T) {
	// Some files name a user, which the reference wants to become.
	testgate.Requires(t, testgate.Output("nbd-server version 3.", "nbd-server", "-V"), testgate.Root())
	compared := 0
	t.Cleanup(func() {
		if compared < 12 && !t.Failed() {
			t.Errorf("only %d files were compared", compared)
		}
	})
	t.Run("all", func(t *testing.T) {
		each(t, func(t *testing.T, c *corpus) {
			if c.does["reference"] != nil || c.does["tls"] != nil {
				return
			}
			theirs, ours := map[string]string{}, map[string]string{}
			c.byReference(t, func() { c.look(t, theirs) })
			p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", c.config())
			p.AwaitListening("unix", c.path("/run/nbd.sock"))
			c.look(t, ours)
			p.Stop()
			for name, want := range theirs {
				if ours[name] != want {
					t.Errorf("%s: %s here, %s by the reference", name, ours[name], want)
				}
			}
			if len(theirs) == 0 {
				t.Error("nothing was compared")
			}
			mu.Lock()
			compared++
			mu.Unlock()
		})
	})
}

// byReference runs f while the reference serves the file.
func (c *corpus) byReference(t *testing.T, f func()) {
	t.Helper()
	pidFile := c.path("/reference.pid")
	log, err := os.Create(c.path("/reference.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// It goes to the background, and may listen only then.
	cmd := exec.Command(testgate.Find("nbd-server"), "-C", c.config(), "-p", pidFile)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		t.Fatalf("the reference does not serve it: %v\n%s", err, read(t, log.Name()))
	}
	pid := awaitPID(t, pidFile)
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		c.awaitFree(t)
		os.Remove(c.path("/run/nbd.sock"))
	}()
	c.awaitSocket(t)
	f()
}

// awaitSocket waits until somebody listens on the unix socket, and, if clients come by TCP,
// on the port.
func (c *corpus) awaitSocket(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		conn, err := net.Dial("unix", c.path("/run/nbd.sock"))
		if err == nil {
			conn.Close()
			if c.does["tcp"] == nil {
				return
			}
			if conn, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.ports["10809"])); err == nil {
				conn.Close()
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("the reference does not listen: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // there is nothing to wait for: it is nobody's child
	}
}

// awaitFree waits until nobody has the sockets any more.
func (c *corpus) awaitFree(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		free := true
		if conn, err := net.Dial("unix", c.path("/run/nbd.sock")); err == nil {
			conn.Close()
			free = false
		}
		for _, port := range c.ports {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				l.Close()
			}
			free = free && err == nil
		}
		if free {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the reference does not end")
		}
		time.Sleep(10 * time.Millisecond) // there is nothing to wait for: it is nobody's child
	}
}

// look notes what a client finds, by the unix socket and by TCP.
func (c *corpus) look(t *testing.T, all map[string]string) {
	t.Helper()
	see := func(as, uri string) {
		conn := dial(t, uri, &client.Config{Contexts: []string{}})
		style := "read-write"
		if strings.Contains(conn.Export().Flags.String(), "READ_ONLY") {
			style = "read-only"
		}
		all[as] = sizeText(conn.Size()) + ", " + style
		conn.Close()
	}
	for _, d := range c.does["export"] {
		name, _, _ := c.want(d)
		see(name, c.uri(name))
	}
	for _, d := range c.does["tcp"] {
		if name, ok := strings.CutPrefix(d, "refused "); ok {
			c.refused(t, c.tcp(name))
			continue
		}
		name, _, _ := c.want(d)
		see(name+" by TCP", c.tcp(name))
	}
}
