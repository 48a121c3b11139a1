package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestSameErrors: what fails is told in the same words, with the same advice and the same
// exit status, whether this process attaches the device or a supervisor.
func TestSameErrors(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	antique := w.serveOldstyle(1 << 20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() { // it hangs up without a word
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	release, err := w.device(3).Open()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	lines := []struct{ line, hint string }{
		{s.uri("dsk"), "name one of them by -N NAME"},
		{"127.0.0.1 " + dead, "nobody listens there"},
		{fmt.Sprint("127.0.0.1 ", silent.Addr().(*net.TCPAddr).Port), "has ended the connection without a word"},
		{"-u " + filepath.Join(w.dir, "nowhere"), "there is no such socket"},
		{"-x -u " + s.socket + " -H localhost -N disk", "the server offers no TLS"},
		{"127.0.0.1 " + antique + " -N disk", "leave -N and the options of TLS away"},
		{s.uri("disk") + " /dev/nbd3", "leave the device away, and the kernel chooses a free one"},
	}
	type outcome struct {
		status int
		said   string
	}
	// An error and its advice, without what else a process logs that keeps devices.
	told := func(status int, errs string) outcome {
		var lines []string
		for line := range strings.Lines(errs) {
			if strings.HasPrefix(line, "nbd-client: ") {
				lines = append(lines, line)
			}
		}
		return outcome{status, strings.Join(lines, "")}
	}
	var alone []outcome
	for _, c := range lines {
		status, _, errs := w.run(strings.Fields("-n " + c.line)...)
		if status == exitOK || !strings.Contains(errs, c.hint) {
			t.Errorf("%s: status %d, %s", c.line, status, errs)
		}
		alone = append(alone, told(status, errs))
	}
	w.write("nbdtab", "nbd0 "+s.uri("disk")+" auto,identifier=auto\n")
	p := w.start("supervisor")
	p.await("attached device=/dev/nbd0")
	for i, c := range lines {
		status, _, errs := w.run(strings.Fields(c.line)...)
		if got := told(status, errs); got != alone[i] {
			t.Errorf("%s: through a supervisor %+v, without %+v", c.line, got, alone[i])
		}
	}
}

// TestNotWhatWasWanted: a device that is attached already, whoever keeps it, is returned
// only if it is what was wanted, and what it does not do is said.
func TestNotWhatWasWanted(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "own": 1 << 20})
	w.write("nbdtab", "nbd0 "+s.uri("disk")+" auto\n")
	w.start("supervisor").await("attached device=/dev/nbd0")
	w.start("-n", s.uri("own")).await("/dev/nbd1\n")
	for _, disk := range []string{"disk", "own"} {
		attach := func(want int, text string, more ...string) {
			t.Helper()
			status, out, errs := w.run(append([]string{s.uri(disk)}, more...)...)
			if status != want || !strings.Contains(errs, text) || (out == "") != (want != exitOK) {
				t.Errorf("%s %q: status %d, %s%s", disk, more, status, out, errs)
			}
		}
		attach(exitOK, "")
		attach(exitError, "can be written, which is not wanted", "-R")
		attach(exitError, "with blocks of 512 bytes and not of 4096", "-b", "4096")
		attach(exitOK, "the number of connections, the request timeout would have to be changed", "-C", "4", "-t", "5")
	}
}
