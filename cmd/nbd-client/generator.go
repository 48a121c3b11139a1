package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/nbdtab"
)

// partitions is how many partitions of a device units may wait for. The kernel's module
// has room for 16 minors for each device by default, the first of which is the device.
const partitions = 15

// generate is a generator of systemd, see systemd.generator(7): for each device of nbdtab
// it lets the units of the device, and of its partitions, start nbd@DEVICE.service, so
// that a line of fstab is all that a mount needs. Those with the key auto are attached
// at boot in any case.
//
// Errors go to the kernel's log if it was started as a generator, since nobody reads what
// those say, and do no harm to other devices.
func (p *program) generate() int {
	if isGenerator(p.env.name) {
		p.logs.ToSyslog()
		defer p.logs.Flush(time.Second)
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

// generateOne writes the links for one device, and a drop-in that says where they come
// from.
func generateOne(dir string, t *nbdtab.Table, e *nbdtab.Entry) error {
	unit := "nbd@" + e.Device + ".service"
	wants := []string{"dev-" + e.Device + ".device"}
	for n := 1; n <= partitions; n++ {
		wants = append(wants, fmt.Sprintf("dev-%sp%d.device", e.Device, n))
	}
	if e.Flags.Auto {
		wants = append(wants, "remote-fs-pre.target")
		if e.Flags.Swap {
			wants = append(wants, "swap.target")
		}
	}
	for _, w := range wants {
		folder := filepath.Join(dir, w+".wants")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		err := os.Symlink(unitFolder+"nbd@.service", filepath.Join(folder, unit))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	folder := filepath.Join(dir, unit+".d")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("# Made by nbd-client --systemd-generator from %s, line %d.\n[Unit]\nSourcePath=%s\n", t.Name, e.Line, strings.ReplaceAll(t.Name, "%", "%%"))
	if needsNetwork(e.Flags) {
		text += "Wants=network-online.target\nAfter=network-online.target\n"
	}
	return os.WriteFile(filepath.Join(folder, "50-nbdtab.conf"), []byte(text), 0o644)
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
