package wine

import (
	"context"
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

// says waits until the server has logged text.
func (c *console) says(t *testing.T, text string) {
	t.Helper()
	late := time.After(limit)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !strings.Contains(c.Log(), text) {
		select {
		case <-late:
			t.Fatalf("the server does not say %q", text)
		case <-c.Exited():
			t.Fatalf("the server has ended without saying %q", text)
		case <-again.C:
		}
	}
}

// refuses wants an export not to be served.
func (c *console) refuses(t *testing.T, export string) {
	t.Helper()
	if conn, err := client.Dial(t.Context(), c.uri(export), nil); err == nil {
		conn.Close()
		t.Errorf("%s is served", export)
	}
}

// forsakes asks for an export, hangs up once what its prerun starts listens, and wants that to
// be ended long before its limit of ten minutes.
func (c *console) forsakes(t *testing.T, export, started string) {
	t.Helper()
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	refused := make(chan error, 1)
	go func() {
		conn, err := client.Dial(ctx, c.uri(export), nil)
		if err == nil {
			conn.Close()
		}
		refused <- err
	}()
	c.AwaitListening("tcp", started)
	hangUp()
	if <-refused == nil {
		t.Errorf("%s is served", export)
	}
	c.says(t, "client gone before its export was ready")
}

// TestCommands: prerun makes the file before it is opened and postrun removes it, a
// prerun that fails refuses the client, and one that takes too long is ended, as is one whose
// client has gone.
func TestCommands(t *testing.T) {
	windows(t)
	dir := harness.Dir(t)
	harness.Image(t, dir, "template", harness.Random(8, mib))
	late, forsaken := harness.FreePort(t), harness.FreePort(t)
	exports := fmt.Sprintf(`[made]
exportname = DIR/made-%%s
prerun = copy "DIR/template" "%%s" >nul&& echo made "%%s" as %%%%NBD_FILE%%%% of %%%%NBD_EXPORT%%%% for %%%%NBD_CLIENT%%%%
postrun = del "%%s"& echo gone "%%s" 100%%%%& exit 3
[fails]
exportname = memory:1M
prerun = echo no such luck>&2& exit 4
postrun = echo x> DIR/wrong
[hangs]
exportname = memory:1M
prerun = "SERVER" -C "DIR/none" 127.0.0.1:%d "DIR/template"& echo x> DIR/wrong
prerun_timeout = 3
[forsaken]
exportname = memory:1M
prerun = "SERVER" -C "DIR/none" 127.0.0.1:%d "DIR/template"& echo x> DIR/wrong
`, late, forsaken)
	exports = strings.NewReplacer("DIR/", quoted(path(dir)+`\`), "SERVER", quoted(path(server(t)))).Replace(exports)
	c := start(t, exports)

	d := device(t, c.uri("made"))
	if d.Size() != mib {
		t.Errorf("%d bytes are served, want %d", d.Size(), mib)
	}
	file := path(filepath.Join(dir, "made-127.0.0.1"))
	c.says(t, "text="+strings.TrimSuffix(strconv.Quote(`made "`+file+`" as `+file+` of made for 127.0.0.1:`), `"`))
	must(t, d.Close())
	c.says(t, "postrun: the command failed: exit status 3; it said "+strconv.Quote(`gone "`+file+`" 100%`))
	if _, err := os.Stat(filepath.Join(dir, "made-127.0.0.1")); !os.IsNotExist(err) {
		t.Errorf("postrun has not removed the file: %v", err)
	}

	c.refuses(t, "fails")
	c.says(t, "exit status 4")
	c.says(t, "no such luck")

	c.refuses(t, "hangs")
	c.says(t, "prerun: the command was ended, it took longer than 3s")
	if conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(late))); err == nil {
		conn.Close()
		t.Error("what a command has started goes on behind its limit")
	}
	started := net.JoinHostPort("127.0.0.1", strconv.Itoa(forsaken))
	c.forsakes(t, "forsaken", started)
	if conn, err := net.Dial("tcp", started); err == nil {
		conn.Close()
		t.Error("what a command has started goes on, though its client has gone")
	}
	c.end(t)
	if _, err := os.Stat(filepath.Join(dir, "wrong")); !os.IsNotExist(err) {
		t.Errorf("a command was run, or went on, that should not: %v", err)
	}
}
