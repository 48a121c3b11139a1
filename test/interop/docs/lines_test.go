package docs

import (
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestSideBySide tries the lines of the pages that have ours beside a peer's.
func TestSideBySide(t *testing.T) {
	for _, name := range []string{"coming-from-nbdkit.md", "coming-from-qemu-nbd.md"} {
		p := readPage(t, name)
		if len(p.rows) < 15 {
			t.Errorf("%s has only %d lines", name, len(p.rows))
		}
		for i, r := range p.rows {
			if len(r.spans) < 2 {
				t.Errorf("%s: a row without two lines: %q", name, r.cells)
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", strings.TrimSuffix(name, ".md"), i+1), func(t *testing.T) {
				t.Parallel()
				t.Logf("%s\n%s", r.spans[0], r.spans[1])
				sideBySide(t, p, r.spans[0], r.spans[1])
			})
		}
	}
}

func sideBySide(t *testing.T, p *page, theirs, ours string) {
	words := strings.Fields(ours)
	switch words[0] {
	case "nbd-client":
		if _, err := clientflags.Parse(words[1:]); err != nil {
			t.Error(err)
		}
		if words[1] == "-l" {
			listed(t, theirs, ours)
		} else if !strings.Contains(ours, "/dev/nbd0") { // the page says so
			t.Errorf("only what needs a kernel's device is not tried here: %s", ours)
		}
		return
	case "nbd-server":
	default:
		t.Fatalf("what is %q?", ours)
	}
	if strings.Contains(ours, "vsock") {
		// There is nobody to connect from; that is tested in a virtual machine.
		if out := harness.Run(t, harness.PlainBinary(t), append(words[1:], "-o", "section")...); !strings.Contains(out, "exportname = memory:64M") {
			t.Errorf("understood as\n%s", out)
		}
		return
	}
	if strings.Contains(ours, "user.conf") {
		testgate.Requires(t, testgate.Root())
	}
	here := newPlace(t)
	got := here.serve(p, ours, ours)
	if got["size"] == "0" {
		t.Error("no bytes")
	}
	if strings.Contains(theirs, "/dev/") || strings.Contains(theirs, "--fork") {
		return // a device of its own, and the background, are other tests'
	}
	peer := strings.Fields(theirs)[0]
	testgate.Requires(t, testgate.Program(peer))
	want := newPlace(t).serve(p, theirs, ours)
	if strings.Contains(ours, " -c ") {
		want["stays"] = "false" // the page says so
	}
	if strings.Contains(theirs, " -A ") {
		want["changes the file"] = "false" // depth is only where there is a diff
	}
	for _, what := range slices.Sorted(maps.Keys(want)) {
		t.Logf("%s: %s", what, want[what])
		if got[what] != want[what] {
			t.Errorf("%s: %q here, %q by %s", what, got[what], want[what], peer)
		}
	}
}

// listed has a client list the exports of a server on this machine, by ours and by the peer's
// program.
func listed(t *testing.T, theirs, ours string) {
	p := newPlace(t)
	port := p.here("10809")
	p.write("config", "[generic]\nlistenaddr = 127.0.0.1\nport = "+port+"\nallowlist = true\n[disk]\nexportname = memory:1M\n[other disk]\nexportname = memory:1M\n")
	proc := harness.Spawn(t, nil, harness.PlainBinary(t), "-n", "-C", filepath.Join(p.dir, "config"))
	proc.AwaitListening("tcp", "127.0.0.1:"+port)
	words := append(strings.Fields(ours)[1:], port) // it is another one than the default
	lists := func(whose, out string) {
		if !strings.Contains(out, "disk\n") || !strings.Contains(out, "other disk") {
			t.Errorf("%s lists\n%s", whose, out)
		}
	}
	lists("ours", harness.Run(t, harness.Tool(t, "nbd-client"), words...))
	peer := strings.Fields(p.here(theirs))
	testgate.Requires(t, testgate.Program(peer[0]))
	lists("theirs", strings.ReplaceAll(harness.Run(t, peer[0], peer[1:]...), "'", "\n"))
	proc.Stop()
}

// serve runs a server's line and returns what a client finds there. What is looked at depends
// on what ours says.
func (p *place) serve(pg *page, line, ours string) map[string]string {
	p.t.Helper()
	secure := ""
	if strings.Contains(line, "pki") || strings.Contains(line, "tls") {
		secure = p.certificates()
	}
	words := strings.Fields(p.here(line))
	listen := " " + strings.Join(words, " ")
	switch {
	case words[0] != "nbd-server":
		if p.ports["2000"] == "" && !strings.Contains(line, "nbd.sock") { // their default
			words = slices.Insert(words, 1, "-p", p.here("10809"))
		}
		proc := harness.Spawn(p.t, nil, words[0], words[1:]...)
		defer proc.Kill()
		return p.look(proc, line, ours, secure)
	case !strings.Contains(listen, " -C "):
		words = append(words, "-C", filepath.Join(p.dir, "none"))
	default:
		for _, path := range slices.Sorted(maps.Keys(pg.files)) {
			text := strings.Replace(pg.files[path], "[generic]", "[generic]\n\tlistenaddr = 127.0.0.1\n\tport = 10809", 1)
			p.write(strings.TrimPrefix(path, "/"), p.here(text))
		}
	}
	if !slices.Contains(words, "-n") {
		words = append(words, "-n") // the background is another test's
	}
	// The shell brings it to where relative paths begin, and is it then.
	words = append([]string{"-c", `cd "$0" && exec "$@"`, p.dir, harness.PlainBinary(p.t)}, words[1:]...)
	proc := harness.Spawn(p.t, nil, "sh", words...)
	defer proc.Stop()
	return p.look(proc, line, ours, secure)
}

// TestReferencePage tries the lines of the page about the reference: keys of an
// export, keys of [generic], and command lines.
func TestReferencePage(t *testing.T) {
	p := readPage(t, "coming-from-nbd-server.md")
	tried := map[string]int{}
	var compared atomic.Int32
	t.Cleanup(func() { // behind the parallel ones
		if n := compared.Load(); n < 15 {
			t.Errorf("of only %d lines the page says something of the reference that is tried", n)
		}
	})
	for i, r := range p.rows {
		line := span.FindStringSubmatch(r.cells[0])
		if line == nil {
			t.Errorf("a row without a line: %q", r.cells)
			continue
		}
		kind := "export"
		if strings.HasPrefix(line[1], "nbd-server ") {
			kind = "command"
		} else if key, _, _ := strings.Cut(line[1], " "); isGeneric(key) && key != "listenaddr" && key != "port" && key != "force_tls" && key != "tlsonly" && key != "splice" || strings.Contains(line[1], "port = 10809") {
			kind = "generic"
		}
		tried[kind]++
		refused := strings.HasPrefix(strings.TrimSpace(r.cells[len(r.cells)-1]), "refused")
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			t.Parallel()
			t.Log(line[1])
			here := newPlace(t)
			if kind == "command" {
				if size := here.serve(p, line[1], line[1])["size"]; size == "0" {
					t.Error("no bytes")
				}
				return
			}
			last := r.cells[len(r.cells)-1]
			if byReference(t, kind, line[1], strings.TrimSpace(r.cells[1])) {
				compared.Add(1)
			}
			here.configured(kind, line[1], refused || strings.Contains(last, "; refused"), strings.Contains(last, "with a warning"))
		})
	}
	for kind, least := range map[string]int{"export": 20, "generic": 5, "command": 5} {
		if tried[kind] < least {
			t.Errorf("only %d lines of kind %s", tried[kind], kind)
		}
	}
}

func isGeneric(key string) bool {
	for _, k := range nbdconf.Keys(true) {
		if k.Name == key {
			return true
		}
	}
	return false
}

// configure writes a configuration with some lines, and returns the path of its socket.
func (p *place) configure(kind, line string) (sock string) {
	p.t.Helper()
	lines := p.here(strings.ReplaceAll(line, "; ", "\n"))
	sock = filepath.Join(p.dir, "run", "test.sock")
	generic, export := "unixsock = "+sock, ""
	if strings.Contains(line, "unixsock") {
		generic, sock = "", filepath.Join(p.dir, "run", "nbd.sock")
	}
	if kind == "generic" {
		generic += "\n" + lines
	} else {
		export = lines
	}
	if strings.Contains(line, "listenaddr = 127") && kind == "generic" {
		generic += "\nduallisten = true"
	}
	if strings.Contains(line, "tlsprio") {
		p.certificates()
		generic += p.here("\nkeyfile = /etc/pki/server-key.pem\ncertfile = /etc/pki/server-cert.pem")
	}
	if strings.Contains(line, "run_user") {
		export = "prerun = true" // without one the key has no effect
	}
	if !strings.Contains(export, "exportname") {
		name := "/srv/disk.img"
		if strings.Contains(line, "multifile") {
			name = "/srv/parts"
		}
		export = "exportname = " + p.here(name) + "\n" + export
	}
	p.write("config", "[generic]\n"+generic+"\n[disk]\n"+export+"\n")
	return sock
}

// configured serves a configuration with some lines. If they are refused, in this place, or
// warned of, it wants that.
func (p *place) configured(kind, line string, refused, warned bool) {
	p.t.Helper()
	sock := p.configure(kind, line)
	proc := harness.Spawn(p.t, nil, harness.PlainBinary(p.t), "-n", "-C", filepath.Join(p.dir, "config"))
	if refused {
		if err := proc.Wait(); err == nil || strings.Contains(proc.Log(), "serving exports") {
			p.t.Errorf("it is served, though the page says that it is refused: %v", err)
		}
		return
	}
	conn, err := p.await(proc, sock)
	if err != nil {
		p.t.Fatal(err)
	}
	proc.AwaitText("serving exports") // by now it has said what there is to say of the configuration
	if said := proc.Log(); warned != strings.Contains(said, "warning: ") {
		p.t.Errorf("a warning: %v, and the page says %v", !warned, warned)
	}
	conn.Close()
	uri := harness.UnixURI(sock, "disk")
	size := strings.TrimSpace(sizeOf(p.t, uri))
	if size == "0" {
		p.t.Error("no bytes")
	}
	proc.Stop()
}

func (p *place) await(proc *harness.Process, sock string) (net.Conn, error) {
	proc.AwaitListening("unix", sock)
	return net.Dial("unix", sock)
}
