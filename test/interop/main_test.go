package interop

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"nbd.example/nbd/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const mib = harness.MiB

// disk is a server with one file, for tests that need no more.
type disk struct {
	*harness.Server
	image string
	data  []byte // what the image holds at first
}

// serveDisk serves data as the export "disk", with further lines for its section.
func serveDisk(t *testing.T, data []byte, lines ...string) *disk {
	t.Helper()
	dir := harness.Dir(t)
	image := harness.Image(t, dir, "disk.img", data)
	s := harness.StartIn(t, dir, harness.Config{Exports: section("disk", image, lines...)})
	return &disk{s, image, data}
}

// section writes a section of the configuration file.
func section(name, exportname string, lines ...string) string {
	return fmt.Sprintf("[%s]\nexportname = %s\n%s\n", name, exportname, strings.Join(lines, "\n"))
}
