//go:build unix

package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/refserver"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// What the page says of the reference, in the words that the test knows. The first that
// matches counts.
var claims = []struct {
	words *regexp.Regexp
	try   func(p *place, t *testing.T)
}{
	{regexp.MustCompile(`^refused|refused by the program`), (*place).refusedThere},
	{regexp.MustCompile(`each client is refused|are kept out|found out when a client comes|nobody can use`), (*place).closedThere},
	{regexp.MustCompile(`^(accepted|ignored|unknown|taken for none)|ignored by the program|the export is served`), (*place).servedThere},
}

// byReference tries a line with the reference, if the page says what becomes of it there. It
// reports whether it does.
func byReference(t *testing.T, kind, line, says string) bool {
	for _, c := range claims {
		if !c.words.MatchString(says) {
			continue
		}
		t.Run("reference", func(t *testing.T) {
			testgate.Requires(t, refserver.Needs()...)
			p := newPlace(t)
			p.configure(kind, line)
			c.try(p, t)
		})
		return true
	}
	return false
}

// refusedThere wants the reference not to start.
func (p *place) refusedThere(t *testing.T) {
	harness.Refused(t, "nbd-server", "-C", filepath.Join(p.dir, "config"), "-p", filepath.Join(p.dir, "pid"), "-d")
}

// startThere starts the reference with the configuration of this place, but with a socket of
// its own.
func (p *place) startThere(t *testing.T) *refserver.Server {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.dir, "config"))
	if err != nil {
		t.Fatal(err)
	}
	rest := regexp.MustCompile(`^\[generic\]\n(unixsock = .*\n)?`).ReplaceAllString(string(text), "")
	return refserver.Start(t, rest)
}

// closedThere wants the reference to start, and to let no client in.
func (p *place) closedThere(t *testing.T) {
	s := p.startThere(t)
	if c, err := client.Dial(t.Context(), s.URI("disk"), nil); err == nil {
		c.Close()
		t.Error("a client is served")
	}
}

// servedThere wants the reference to serve.
func (p *place) servedThere(t *testing.T) {
	s := p.startThere(t)
	if size := strings.TrimSpace(sizeOf(t, s.URI("disk"))); size == "0" {
		t.Error("no bytes")
	}
}
