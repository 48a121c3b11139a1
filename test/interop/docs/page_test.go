package docs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// row is one line of a table: what stands in its cells.
type row struct {
	cells []string
	spans []string // the spans of code in the first two cells, in their order
}

// page is what a page says.
type page struct {
	rows  []row
	files map[string]string // by path
}

var (
	span   = regexp.MustCompile("`([^`]+)`")
	fenced = regexp.MustCompile("(?m)^`([^`\n]+)`\n\n```ini\n((?s:.*?))```")
)

func readPage(t *testing.T, name string) *page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	s := strings.ReplaceAll(string(text), "\r\n", "\n")
	p := &page{files: map[string]string{}}
	for _, m := range fenced.FindAllStringSubmatch(s, -1) {
		p.files[m[1]] = m[2]
	}
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		r := row{cells: cells}
		for _, c := range cells[:min(2, len(cells))] {
			for _, m := range span.FindAllStringSubmatch(c, -1) {
				r.spans = append(r.spans, m[1])
			}
		}
		if len(r.spans) > 0 {
			p.rows = append(p.rows, r)
		}
	}
	return p
}

// place is a folder in which lines are tried.
type place struct {
	t     *testing.T
	dir   string
	ports map[string]string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	testgate.Requires(t, testgate.Own("", func() string {
		if runtime.GOOS == "windows" {
			return "needs the paths and sockets of Unix"
		}
		return ""
	}))
	p := &place{t: t, dir: harness.Dir(t), ports: map[string]string{}}
	if err := os.Chmod(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"srv", "etc", "run", "dev"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	p.image("srv/disk.img", 4<<20)
	p.image("srv/parts.0", 1<<20)
	p.image("srv/parts.1", 2<<20)
	p.image("dev/sdb1", 1<<20)
	p.image("srv/mbr.img", 4<<20)
	p.partition("srv/mbr.img")
	p.write("etc/allow", "127.0.0.0/8\n")
	p.write("etc/nbd-server/allow", "127.0.0.0/8\n")
	return p
}

func (p *place) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) image(name string, size int) { p.write(name, string(bytes.Repeat([]byte{0x11}, size))) }

// partition gives an image an MBR with one partition of 1 MiB.
func (p *place) partition(name string) {
	p.t.Helper()
	sector := make([]byte, 512)
	sector[446+4] = 0x83
	binary.LittleEndian.PutUint32(sector[446+8:], 2048)
	binary.LittleEndian.PutUint32(sector[446+12:], 2048)
	sector[510], sector[511] = 0x55, 0xaa
	f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_WRONLY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(sector, 0); err != nil {
		p.t.Fatal(err)
	}
}

// certificates makes /etc/pki.
func (p *place) certificates() (client string) {
	p.t.Helper()
	a := harness.NewAuthority(p.t, p.dir, "authority")
	server := a.Issue(p.t, "server", "server", "localhost", "127.0.0.1")
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		b, err := os.ReadFile(filepath.Join(server, name))
		if err != nil {
			p.t.Fatal(err)
		}
		p.write("etc/pki/"+name, string(b))
	}
	return a.Issue(p.t, "client", "client")
}

var (
	paths   = regexp.MustCompile(`(^|[\s=:,])/(srv|etc|run|dev/sdb1)\b`)
	numbers = regexp.MustCompile(`\b(10809|10810|2000)\b`)
)

// here puts a line into this place: paths below its folder, and free ports.
func (p *place) here(line string) string {
	line = paths.ReplaceAllString(line, "${1}"+p.dir+"/$2")
	return numbers.ReplaceAllStringFunc(line, func(n string) string {
		if p.ports[n] == "" {
			p.ports[n] = fmt.Sprint(harness.FreePort(p.t))
		}
		return p.ports[n]
	})
}

// sizeOf asks our client for the size of an export.
func sizeOf(t *testing.T, uri string) string {
	t.Helper()
	c, err := client.Dial(t.Context(), uri, nil)
	if err != nil {
		t.Fatalf("%s: %v", uri, err)
	}
	defer c.Close()
	return fmt.Sprint(c.Size())
}
