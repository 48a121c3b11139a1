package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/nbdtab"
)

// partitions is how many partitions of a device units may wait for. The kernel's module
// has room for 16 minors for each device by default, the first of which is the device.
const partitions = 15

// generate is a generator of systemd, see systemd.generator(7): for each device of nbdtab
// it lets the units of the device, and of its partitions, start nbd@DEVICE.service, so
// that a line of fstab is all that a mount needs. One that has an identifier in nbdtab can
// be called by its name in /dev/disk/by-nbd there. Those with the key auto are attached at
// boot in any case.
//
// Errors go to the kernel's log if it was started as a generator, since nobody reads what
// those say, and do no harm to other devices.
func (p *program) generate() int {
	if isGenerator(p.env.name) {
		p.logs.ToSyslog()
	}
	if len(p.flags.Dirs) == 0 {
		p.log.Error("a generator of systemd gets the folder for its units")
		return exitError
	}
	t, err := p.table()
	if err != nil {
		return p.tell(err)
	}
	status := exitOK
	for _, e := range t.Entries {
		if e.Err != nil {
			p.logLines(e.Err)
			status = exitError
			continue
		}
		if err := generateOne(p.flags.Dirs[0], t, &e); err != nil {
			p.log.Error(err.Error())
			status = exitError
		}
	}
	return status
}

// unitFolder is where the template lies. Links to it may lead nowhere here: systemd looks
// for the template by its name.
const unitFolder = "/usr/lib/systemd/system/"

// maxUnitName is how long the name of a unit may be, in bytes.
const maxUnitName = 255

// generateOne writes the links for one device, and a drop-in that says where they come
// from.
func generateOne(dir string, t *nbdtab.Table, e *nbdtab.Entry) error {
	service := "nbd@" + e.Device + ".service"
	nodes := deviceNodes(e)
	var wanting []string
	for _, node := range nodes {
		wanting = append(wanting, unit.UnitNamePathEscape(node)+".device")
	}
	if e.Flags.Auto {
		wanting = append(wanting, "remote-fs.target")
		if e.Flags.Swap {
			wanting = append(wanting, "swap.target")
		}
	}
	for _, w := range wanting {
		if len(w) > maxUnitName-len(".wants") {
			continue // systemd knows no such unit
		}
		folder := filepath.Join(dir, w+".wants")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		err := os.Symlink(unitFolder+"nbd@.service", filepath.Join(folder, service))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	folder := filepath.Join(dir, service+".d")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "50-nbdtab.conf"), []byte(dropIn(t, e, nodes)), 0o644)
}

// deviceNodes returns the names by which a device and its partitions may be mounted.
func deviceNodes(e *nbdtab.Entry) []string {
	list := []string{"/dev/" + e.Device}
	for n := 1; n <= partitions; n++ {
		list = append(list, fmt.Sprintf("/dev/%sp%d", e.Device, n))
	}
	if e.Flags.Identifier == "" {
		return list
	}
	name := linkFolder + linkName(e.Flags.Identifier)
	list = append(list, name)
	for n := 1; n <= partitions; n++ {
		list = append(list, fmt.Sprintf("%s-part%d", name, n))
	}
	return list
}

// dropIn is what nbdtab adds to the service of a device.
func dropIn(t *nbdtab.Table, e *nbdtab.Entry, nodes []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by nbd-client --systemd-generator from %s, line %d.\n[Unit]\n", t.Name, e.Line)
	fmt.Fprintf(&b, "SourcePath=%s\n", strings.ReplaceAll(t.Name, "%", "%%"))
	if needsNetwork(e.Flags) {
		b.WriteString("Wants=network-online.target\n")
	}
	if !e.Flags.Swap {
		return b.String()
	}
	// What is swapped on must be swapped off before it is detached. systemd has no target
	// for that, as it has for file systems.
	for _, node := range nodes {
		if name := unit.UnitNamePathEscape(node) + ".swap"; len(name) <= maxUnitName {
			fmt.Fprintf(&b, "Before=%s\n", name)
		}
	}
	return b.String()
}

// needsNetwork reports whether the server is on another machine.
func needsNetwork(f *clientflags.Flags) bool {
	for _, u := range f.URIs {
		if !strings.Contains(u, "+unix:") {
			return true
		}
	}
	return len(f.URIs) == 0 && !f.Unix
}
