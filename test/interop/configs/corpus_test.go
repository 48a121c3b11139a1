package configs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// patience ends a test that is stuck.
const patience = time.Minute

// corpus is one configuration, in a folder of its own.
type corpus struct {
	t     *testing.T
	name  string
	dir   string
	text  string              // as it is served
	does  map[string][]string // what stands behind "#: WORD"
	ports map[string]int      // the ports of the file, and those used instead
}

// unixOnly skips where the paths of these files mean nothing.
func unixOnly(t *testing.T) {
	testgate.Requires(t, testgate.Own("", func() string {
		if runtime.GOOS == "windows" {
			return "needs the paths and sockets of Unix"
		}
		return ""
	}))
}

var (
	roots    = regexp.MustCompile(`([=\s])/(srv|export|etc|var|tmp|opt|home|mnt|local|run|dev/vg|dev/disk)/`)
	sized    = regexp.MustCompile(`^(.*?) ?(\d+[kM]?)((?: [a-z]+)*)$`)
	generic  = regexp.MustCompile(`(?m)^\s*\[generic\]`)
	portLine = regexp.MustCompile(`(?m)^(\s*port\s*=\s*)(\d+)`)
)

// load prepares a file of testdata.
func load(t *testing.T, path string) *corpus {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := &corpus{t: t, name: filepath.Base(path), dir: harness.Dir(t), does: map[string][]string{}, ports: map[string]int{}}
	if err := os.Chmod(c.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if d, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "#: "); ok {
			word, rest, _ := strings.Cut(d, " ")
			c.does[word] = append(c.does[word], rest)
		}
	}
	c.text = c.adapt(string(raw))
	c.files()
	return c
}

// adapt makes a text of the corpus one for this machine: paths below the test's
// folder, free ports, users that exist, and a socket for the test.
func (c *corpus) adapt(s string) string {
	s = roots.ReplaceAllString(s, "${1}"+c.dir+"/$2/")
	s = portLine.ReplaceAllStringFunc(s, func(line string) string {
		m := portLine.FindStringSubmatch(line)
		if c.ports[m[2]] == 0 {
			c.ports[m[2]] = harness.FreePort(c.t)
		}
		return m[1] + strconv.Itoa(c.ports[m[2]])
	})
	for _, key := range []string{"user", "group"} {
		re := regexp.MustCompile(`(?m)^\s*` + key + `\s*=\s*(\S+)`)
		if m := re.FindStringSubmatch(s); m != nil && os.Geteuid() == 0 {
			if _, err := user.Lookup(m[1]); err != nil {
				s = re.ReplaceAllString(s, "")
			}
		}
	}
	if len(c.does["tcp"]) > 0 && c.ports["10809"] == 0 {
		c.ports["10809"] = harness.FreePort(c.t)
		more := fmt.Sprintf("${0}\nport = %d\nduallisten = true", c.ports["10809"])
		if !strings.Contains(s, "listenaddr") {
			more += "\nlistenaddr = 127.0.0.1"
		}
		s = generic.ReplaceAllString(s, more)
	}
	if !strings.Contains(s, "unixsock") {
		s = generic.ReplaceAllString(s, "${0}\nunixsock = "+c.path("/run/nbd.sock"))
	}
	if c.does["crlf"] != nil {
		s = strings.ReplaceAll(s, "\n", "\r\n")
	}
	return s
}

// path returns where a path of the corpus really is.
func (c *corpus) path(p string) string { return filepath.Join(c.dir, p) }

func (c *corpus) mkdir(p string) {
	c.t.Helper()
	if err := os.MkdirAll(p, 0o777); err != nil {
		c.t.Fatal(err)
	}
	for ; p != c.dir; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o777); err != nil { // also for those whom the server becomes
			c.t.Fatal(err)
		}
	}
}

func (c *corpus) write(p string, content []byte) {
	c.t.Helper()
	c.mkdir(filepath.Dir(p))
	if err := os.WriteFile(p, content, 0o666); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Chmod(p, 0o666); err != nil {
		c.t.Fatal(err)
	}
}

// files makes what the configuration wants to find.
func (c *corpus) files() {
	c.t.Helper()
	c.mkdir(c.path("/run"))
	for _, d := range c.does["file"] {
		m := sized.FindStringSubmatch(d)
		c.write(c.path(m[1]), bytes.Repeat([]byte("corpus! "), int(bytesOf(c.t, m[2]))/8))
	}
	for _, d := range c.does["dir"] {
		c.mkdir(c.path(d))
	}
	for _, d := range c.does["text"] {
		p, text, _ := strings.Cut(d, " ")
		c.write(c.path(p), []byte(strings.ReplaceAll(text, `\n`, "\n")))
	}
	for _, d := range c.does["include"] {
		name, text, _ := strings.Cut(d, " ")
		c.write(c.path("/etc/nbd-server/conf.d/"+name), []byte(c.adapt(strings.ReplaceAll(text, `\n`, "\n"))))
	}
	for _, d := range c.does["tls"] {
		a := harness.NewAuthority(c.t, c.dir, "authority")
		from := a.Issue(c.t, "server", "server", "localhost")
		a.Issue(c.t, "client", "client")
		for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
			pem, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				c.t.Fatal(err)
			}
			c.write(filepath.Join(c.path(d), name), pem)
		}
	}
	c.write(c.config(), []byte(c.text))
}

func (c *corpus) config() string { return c.path("/config") }

// bytesOf reads a size with a unit.
func bytesOf(t *testing.T, s string) int64 {
	t.Helper()
	unit := int64(1)
	switch {
	case strings.HasSuffix(s, "k"):
		unit = 1 << 10
	case strings.HasSuffix(s, "M"):
		unit = 1 << 20
	}
	n, err := strconv.ParseInt(strings.TrimRight(s, "kM"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * unit
}

func each(t *testing.T, f func(t *testing.T, c *corpus)) {
	unixOnly(t)
	names, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(names) < 25 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".conf"), func(t *testing.T) {
			t.Parallel()
			f(t, load(t, name))
		})
	}
}

// TestParsed: each file is understood, with the warnings that it deserves, and what
// --dump-config prints is understood in the same way.
func TestParsed(t *testing.T) {
	each(t, func(t *testing.T, c *corpus) {
		conf, problems, err := nbdconf.Load(opener.OS{}, c.config())
		if err != nil || problems.Err() != nil {
			t.Fatalf("%v %v", err, problems)
		}
		for _, p := range problems {
			known := false
			for _, want := range c.does["warns"] {
				known = known || strings.HasPrefix(p.Text, want)
			}
			if !known {
				t.Errorf("an unexpected warning: %v", p)
			}
		}
		if len(problems) != len(c.does["warns"]) {
			t.Errorf("%d warnings, want %d: %v", len(problems), len(c.does["warns"]), problems)
		}
		if len(conf.Exports) == 0 {
			t.Error("no exports")
		}
		first := harness.Run(t, harness.Binary(t), "-C", c.config(), "--dump-config")
		again := c.path("/again")
		c.write(again, []byte(first))
		reread, problems, err := nbdconf.Load(opener.OS{}, again)
		if err != nil || problems.Err() != nil {
			t.Fatalf("the dump cannot be read: %v %v\n%s", err, problems, first)
		}
		var second bytes.Buffer
		if err := reread.WriteKeyFile(&second); err != nil || second.String() != first {
			t.Errorf("a dump of a dump is\n%s\nwant\n%s", second.String(), first)
		}
		for _, x := range conf.Exports {
			if !strings.Contains(first, "["+x.Name+"]\n") {
				t.Errorf("the dump lacks [%s]:\n%s", x.Name, first)
			}
		}
	})
}

// TestServed: each file is served, and clients find what they should.
func TestServed(t *testing.T) {
	each(t, func(t *testing.T, c *corpus) {
		p := harness.Spawn(t, []string{"GORACE=halt_on_error=1 exitcode=66"}, harness.Binary(t), "-n", "-C", c.config())
		p.AwaitListening("unix", c.path("/run/nbd.sock"))
		c.visit(t)
		p.Stop()
		for _, d := range c.does["gone"] {
			if _, err := os.Lstat(c.path(d)); !os.IsNotExist(err) {
				t.Errorf("%s is still there: %v", d, err)
			}
		}
	})
}

// visit does what the clients of a configuration do.
func (c *corpus) visit(t *testing.T) {
	before := map[string][]byte{}
	for _, d := range c.does["untouched"] {
		before[d] = read(t, c.path(d))
	}
	for _, d := range c.does["export"] {
		name, size, flags := c.want(d)
		c.found(t, c.uri(name), nil, size, flags)
	}
	for _, d := range c.does["tcp"] {
		if name, ok := strings.CutPrefix(d, "refused "); ok {
			c.refused(t, c.tcp(name))
			continue
		}
		name, size, flags := c.want(d)
		c.found(t, c.tcp(name), nil, size, flags)
	}
	for _, d := range c.does["refused"] {
		c.refused(t, c.uri(d))
	}
	for _, d := range c.does["secure"] {
		name, size, flags := c.want(d)
		folder := filepath.Join(c.dir, "authority", "client")
		c.found(t, strings.Replace(c.uri(name), "nbd+unix", "nbds+unix", 1)+"&tls-hostname=localhost&tls-certificates="+folder, nil, size, flags)
	}
	for _, d := range c.does["oldstyle"] {
		port, size, flags := c.want(d)
		c.found(t, fmt.Sprintf("nbd://127.0.0.1:%d", c.ports[port]), &client.Config{Oldstyle: true}, size, flags)
	}
	for _, d := range c.does["blind"] {
		name, size, _ := c.want(d)
		conn := dial(t, c.uri(name), nil)
		if err := conn.ReadAt(t.Context(), make([]byte, 512), 0); err == nil || conn.Size() != size {
			t.Errorf("%s: %d bytes, which can be read (%v)", name, conn.Size(), err)
		}
		if err := conn.WriteAt(t.Context(), make([]byte, 512), 0, 0); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	for _, d := range c.does["there"] {
		if info, err := os.Stat(c.path(d)); err != nil || info.Size() == 0 {
			t.Errorf("%s is not there, or empty: %v", d, err)
		}
	}
	for d, want := range before {
		if !bytes.Equal(read(t, c.path(d)), want) {
			t.Errorf("%s was written to", d)
		}
	}
}

func (c *corpus) want(d string) (name string, size int64, flags []string) {
	c.t.Helper()
	m := sized.FindStringSubmatch(d)
	if m == nil {
		c.t.Fatalf("what is %q?", d)
	}
	return m[1], bytesOf(c.t, m[2]), strings.Fields(m[3])
}

func (c *corpus) uri(export string) string {
	return harness.UnixURI(c.path("/run/nbd.sock"), export)
}

// tcp names an export at the port of the file.
func (c *corpus) tcp(export string) string {
	return fmt.Sprintf("nbd://127.0.0.1:%d/%s", c.ports["10809"], export)
}

func dial(t *testing.T, uri string, cfg *client.Config) *client.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := client.Dial(ctx, uri, cfg)
	if err != nil {
		t.Fatalf("%s: %v", uri, err)
	}
	return conn
}

func (c *corpus) refused(t *testing.T, uri string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if conn, err := client.Dial(ctx, uri, nil); err == nil {
		conn.Close()
		t.Errorf("%s: the client was let in", uri)
	}
}

// found uses an export and compares with what is wanted.
func (c *corpus) found(t *testing.T, uri string, cfg *client.Config, size int64, flags []string) {
	t.Helper()
	conn := dial(t, uri, cfg)
	offered := conn.Export().Flags.String()
	if conn.Size() != size {
		t.Errorf("%s: %d bytes, want %d", uri, conn.Size(), size)
	}
	readonly := false
	for _, f := range flags {
		name, not := strings.CutPrefix(f, "no")
		flag := map[string]string{"readonly": "READ_ONLY", "flush": "SEND_FLUSH", "fua": "SEND_FUA", "trim": "SEND_TRIM", "rotational": "ROTATIONAL"}[name]
		if strings.Contains(offered, flag) == not {
			t.Errorf("%s: %s, want %s", uri, offered, f)
		}
		readonly = readonly || f == "readonly"
	}
	if strings.Contains(offered, "READ_ONLY") != readonly {
		t.Errorf("%s: %s, want read-only: %v", uri, offered, readonly)
	}
	block := bytes.Repeat([]byte{0x5a}, 512)
	at := size - size%512 - 512
	want := make([]byte, 512)
	if err := conn.ReadAt(t.Context(), want, at); err != nil {
		t.Errorf("%s: %v", uri, err)
	}
	err := conn.WriteAt(t.Context(), block, at, 0)
	if (err == nil) == readonly {
		t.Errorf("%s: a write: %v", uri, err)
	}
	if !readonly {
		want = block
	}
	got := make([]byte, 512)
	if err := conn.ReadAt(t.Context(), got, at); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: read %x after a write, %v; want %x", uri, got[:4], err, want[:4])
	}
	if err := conn.Close(); err != nil {
		t.Errorf("%s: %v", uri, err)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
