package wine

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/test/harness"
)

// service runs a command about a service.
func service(t *testing.T, s *system, dir string, args ...string) (string, error) {
	t.Helper()
	c := s.command(server(t), append([]string{"service"}, args...)...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	return string(out), err
}

// TestServiceCommands: a service, which has no console, runs prerun and postrun, ends what
// takes too long, and leaves nothing running when it stops.
func TestServiceCommands(t *testing.T) {
	available(t)
	s := windows(t)
	dir := harness.Dir(t)
	harness.Image(t, dir, "template", harness.Random(9, mib))
	port, late := harness.FreePort(t), harness.FreePort(t)
	uri := "nbd://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + "/"
	exports := fmt.Sprintf(`[made]
exportname = DIR/made
prerun = copy "DIR/template" "%%s" >nul
postrun = del "%%s"& echo %%%%NBD_EXPORT%%%%> DIR/gone
[fails]
exportname = memory:1M
prerun = exit 4
[hangs]
exportname = memory:1M
prerun = "SERVER" -C "DIR/none" 127.0.0.1:%d "DIR/template"
prerun_timeout = 3
[lasts]
exportname = memory:1M
postrun = "SERVER" -C "DIR/none" 127.0.0.1:%d "DIR/template"
postrun_timeout = 4
`, late, late)
	config(t, dir, port, strings.NewReplacer("DIR/", quoted(path(dir)+`\`), "SERVER", quoted(path(server(t)))).Replace(exports))
	do := func(args ...string) {
		t.Helper()
		if out, err := service(t, s, dir, args...); err != nil {
			t.Fatalf("%q: %v, %s", args, err, out)
		}
	}
	do("install", "--name", "nbd-commands", "--manual", "-C", "config")
	t.Cleanup(func() { service(t, s, dir, "remove", "--name", "nbd-commands") })
	do("start", "--name", "nbd-commands")

	d := device(t, uri+"made")
	if d.Size() != mib {
		t.Errorf("%d bytes are served, want %d", d.Size(), mib)
	}
	must(t, d.Close())
	appears(t, filepath.Join(dir, "gone"), "made")
	if _, err := os.Stat(filepath.Join(dir, "made")); !os.IsNotExist(err) {
		t.Errorf("postrun has not removed the file: %v", err)
	}
	for _, name := range []string{"fails", "hangs"} {
		if c, err := client.Dial(t.Context(), uri+name, nil); err == nil {
			c.Close()
			t.Errorf("%s is served", name)
		}
	}
	device(t, uri+"lasts").Close() // it may be waiting for the postrun
	do("stop", "--name", "nbd-commands")
	if c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(late))); err == nil {
		c.Close()
		t.Error("what a command has started goes on behind its limit, and the service")
	}
	do("remove", "--name", "nbd-commands")
}

// appears waits for a file with a text.
func appears(t *testing.T, file, text string) {
	t.Helper()
	late := time.After(limit)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), text) {
			return
		}
		select {
		case <-late:
			t.Fatalf("%s does not appear: %q, %v", file, b, err)
		case <-again.C:
		}
	}
}

// TestService installs a service, and lives with it until it is removed.
func TestService(t *testing.T) {
	available(t)
	s := windows(t)
	dir := harness.Dir(t)
	port := harness.FreePort(t)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	const name = "nbd-test"
	do := func(verb, says string, args ...string) {
		t.Helper()
		out, err := service(t, s, dir, append([]string{verb, "--name", name}, args...)...)
		if err != nil || !strings.Contains(out, says) {
			t.Fatalf("%s: %v, %q; want %q", verb, err, out, says)
		}
	}
	refused := func(verb, says string, args ...string) {
		t.Helper()
		out, err := service(t, s, dir, append([]string{verb, "--name", name}, args...)...)
		if err == nil || !strings.Contains(out, says) {
			t.Fatalf("%s: %v, %q; want a refusal with %q", verb, err, out, says)
		}
	}
	refused("start", "the command install makes it one")
	config(t, dir, port, "[one]\nexportname = memory:1M\n")
	// The file is relative to the folder of the installation. By hand: what starts
	// with the system, wine starts when it likes.
	do("install", "", "--manual", "-C", "config")
	t.Cleanup(func() { service(t, s, dir, "remove", "--name", name) })
	refused("install", "exists", "--manual", "-C", "config")
	do("status", "nbd-test: stopped")
	key := `HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\` + name
	if out, err := s.command("reg", "query", key).CombinedOutput(); err != nil || !strings.Contains(string(out), "EventCreate.exe") {
		t.Errorf("the source of the event log: %v, %q", err, out)
	}

	do("start", "")
	do("status", "nbd-test: running, process ")
	must(t, device(t, "nbd://"+addr+"/one").Close())
	config(t, dir, port, "[two]\nexportname = memory:2M\n")
	do("reload", "")
	if d := await(t, "nbd://"+addr+"/two"); d.Size() != 2*mib {
		t.Errorf("after a reload, two has %d bytes", d.Size())
	}
	do("start", "") // runs already
	do("stop", "")
	do("status", "nbd-test: stopped")
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("a service that has stopped still listens")
	}
	do("stop", "") // has stopped already

	config(t, dir, port, "[three]\nexportname = "+quoted(path(filepath.Join(dir, "missing")))+"\n")
	refused("start", "the event log says why")
	do("status", "nbd-test: stopped")

	must(t, os.Remove(filepath.Join(dir, "config")))
	config(t, dir, port, "[four]\nexportname = memory:4M\n")
	do("start", "")
	must(t, device(t, "nbd://"+addr+"/four").Close())
	do("remove", "") // stops it first
	refused("status", "the command install makes it one")
	if out, err := s.command("reg", "query", key).CombinedOutput(); err == nil {
		t.Errorf("the source of the event log is still there: %q", out)
	}
	starts(t, s, dir)
	refused("run", "only the service manager can run it", "--", "-C", "config")
}

// starts looks at how services are started: with the system, or by hand.
func starts(t *testing.T, s *system, dir string) {
	t.Helper()
	const name = "nbd-starts"
	defer service(t, s, dir, "remove", "--name", name)
	for start, args := range map[string][]string{"0x2": {"-C", "config"}, "0x3": {"--manual", "-C", "config"}} {
		if out, err := service(t, s, dir, append([]string{"install", "--name", name}, args...)...); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
		out, err := s.command("reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\`+name, "/v", "Start").CombinedOutput()
		if words := strings.Fields(string(out)); err != nil || len(words) == 0 || words[len(words)-1] != start {
			t.Errorf("installed with %q, it starts by %q, %v; want %s", args, out, err, start)
		}
		if out, err := service(t, s, dir, "remove", "--name", name); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
	}
}
