package docs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/test/harness"
)

// visit is a client's look at whoever serves in a place.
type visit struct {
	*place
	proc *harness.Process
	uri  string
	seen map[string]string
}

// uri returns what serves in this place, by its name.
func (p *place) uri(proc *harness.Process, line, secure string) string {
	p.t.Helper()
	network, addr := "tcp", ""
	switch {
	case strings.Contains(line, "nbd.sock"):
		network, addr = "unix", filepath.Join(p.dir, "run", "nbd.sock")
	case p.ports["2000"] != "":
		addr = "127.0.0.1:" + p.ports["2000"]
	default:
		addr = "127.0.0.1:" + p.ports["10809"]
	}
	proc.AwaitListening(network, addr)
	name := ""
	if strings.Contains(line, "-C ") || strings.Contains(line, "-x disk") || strings.Contains(line, "-e disk") {
		name = "disk"
	}
	switch {
	case network == "unix":
		return harness.UnixURI(addr, name)
	case secure != "":
		return "nbds://" + addr + "/" + name + "?tls-certificates=" + secure
	}
	return "nbd://" + addr + "/" + name
}

// look says what a client finds: always the size, what may be done and what is there; and what
// ours promises besides.
func (p *place) look(proc *harness.Process, line, ours, secure string) map[string]string {
	p.t.Helper()
	v := &visit{place: p, proc: proc, uri: p.uri(proc, line, secure), seen: map[string]string{}}
	c := v.dial()
	v.note("size", c.Size())
	v.note("read-only", c.Caps().ReadOnly)
	switch {
	case strings.Contains(ours, "fault:"):
		v.failures(c)
	case strings.Contains(ours, "delay:"):
		begin := time.Now()
		err := c.ReadAt(p.t.Context(), make([]byte, 512), 0)
		v.note("waits", err == nil && time.Since(begin) >= 10*time.Millisecond)
	default:
		v.contents(c)
	}
	c.Close()
	if strings.Contains(ours, " -M 4 ") {
		v.crowd()
	}
	if strings.Contains(ours, " -l ") {
		_, err := client.Dial(p.t.Context(), strings.Replace(v.uri, "127.0.0.1", "[::1]", 1), nil)
		v.note("refuses who is not on the list", err != nil)
	}
	if secure != "" {
		_, err := client.Dial(p.t.Context(), regexp.MustCompile(`\?.*`).ReplaceAllString(strings.Replace(v.uri, "nbds:", "nbd:", 1), ""), nil)
		v.note("refuses in clear", err != nil)
	}
	v.process(ours)
	return v.seen
}

func (v *visit) note(what string, found any) { v.seen[what] = fmt.Sprint(found) }

func (v *visit) dial() *client.Conn {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, v.uri, &client.Config{Oldstyle: true})
	if err != nil {
		v.t.Fatalf("%s: %v", v.uri, err)
	}
	return c
}

// contents reads all, writes a little, and finds out where that went.
func (v *visit) contents(c *client.Conn) {
	v.t.Helper()
	ctx, sum, buf := v.t.Context(), sha256.New(), make([]byte, 1<<20)
	for off := int64(0); off < c.Size(); off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), c.Size()-off)]
		if err := c.ReadAt(ctx, buf, off); err != nil {
			v.t.Fatal(err)
		}
		sum.Write(buf)
	}
	v.note("contents", fmt.Sprintf("%x", sum.Sum(nil)))
	text := []byte("written by a client")
	text = append(text, make([]byte, 4096-len(text))...)
	if c.Caps().ReadOnly {
		return
	}
	got := make([]byte, len(text))
	err := errors.Join(c.WriteAt(ctx, text, 0, 0), c.ReadAt(ctx, got, 0))
	v.note("writable", err == nil && bytes.Equal(got, text))
	c.Close() // qemu-nbd serves one at a time
	again := v.dial()
	defer again.Close()
	err = again.ReadAt(ctx, got, 0)
	v.note("stays", err == nil && bytes.Equal(got, text))
	images, err := filepath.Glob(filepath.Join(v.dir, "srv", "*"))
	if err != nil {
		v.t.Fatal(err)
	}
	changed := false
	for _, image := range images {
		b, err := os.ReadFile(image)
		changed = changed || err == nil && bytes.Contains(b, text)
	}
	v.note("changes the file", changed)
}

// failures reads until one in a hundred has certainly failed.
func (v *visit) failures(c *client.Conn) {
	failed := map[string]bool{}
	for range 4000 {
		if err := c.ReadAt(v.t.Context(), make([]byte, 512), 0); err != nil {
			failed[fmt.Sprint("EIO: ", errors.Is(err, syscall.EIO))] = true
		}
	}
	v.note("reads fail", failed)
	v.note("writes fail", c.WriteAt(v.t.Context(), make([]byte, 512), 0, block.FUA))
}

// crowd brings more clients than may be there. They are refused, or kept waiting.
func (v *visit) crowd() {
	var all []*client.Conn
	for range 4 {
		all = append(all, v.dial())
	}
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Second)
	defer cancel()
	c, err := client.Dial(ctx, v.uri, nil)
	v.note("has room for four", err != nil)
	if err == nil {
		c.Close()
	}
	for _, c := range all {
		c.Close()
	}
}

// process looks at the server itself.
func (v *visit) process(ours string) {
	if strings.Contains(ours, "nbd.pid") {
		b, err := os.ReadFile(filepath.Join(v.dir, "run", "nbd.pid"))
		v.note("pid file", err == nil && strings.TrimSpace(string(b)) == fmt.Sprint(v.proc.PID()))
	}
	if strings.Contains(ours, "user.conf") {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.proc.PID()))
		v.note("user", fmt.Sprint(regexp.MustCompile(`(?m)^[UG]id:.*`).FindAllString(string(b), -1), err))
	}
}
