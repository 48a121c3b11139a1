package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nbd.example/nbd/kernel"
)

// linkFolder is where the rules of udev make links.
const linkFolder = "/dev/disk/by-nbd/"

// maxName bounds a name in /dev/disk/by-nbd, in bytes, so that "-part15" fits behind it.
const maxName = 240

// udev prints what the rules of udev need to know of a device: a name that can stand in
// /dev, made of its identifier.
func (p *program) udev(ctx context.Context) int {
	driver, err := p.anyDriver()
	if err != nil {
		return p.fail(ctx, err)
	}
	defer driver.Close()
	i, err := p.index(p.flags.Devices[0])
	if err != nil {
		return p.fail(ctx, err)
	}
	info, err := driver.Info(i)
	if err != nil {
		return p.fail(ctx, err)
	}
	if info.Identifier == "" {
		return exitOK
	}
	_, err = fmt.Fprintf(p.env.stdout, "ID_NBD_NAME=%s\n", linkName(info.Identifier))
	return p.tell(err)
}

// announce has udev look at a device and its partitions once more. The kernel tells of a
// new device before it shows the identifier, of which their links are made. Where there
// is no udev, or no right to do so, nothing is lost.
func announce(i kernel.Index) {
	dir := "/sys/block/" + i.Name()
	partitions, _ := filepath.Glob(dir + "/" + i.Name() + "p*/uevent") // the pattern is a good one
	for _, path := range append([]string{dir + "/uevent"}, partitions...) {
		_ = os.WriteFile(path, []byte("change"), 0)
	}
}

// linkName encodes an identifier as a file's name, one to one: what udev does not take
// in names of links is written as \xNN, as in /dev/disk/by-label. A long one ends in a
// checksum of the whole.
func linkName(identifier string) string {
	var b strings.Builder
	for i := range len(identifier) {
		c := identifier[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9'
		// A dot in front would hide the link, or name a folder.
		if letter || strings.IndexByte("#+-.:=@_", c) >= 0 && (c != '.' || i > 0) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	name := b.String()
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(identifier))
	name = name[:maxName-4-2*8]
	// Not in the middle of \xNN.
	if i := strings.LastIndexByte(name, '\\'); i > len(name)-4 {
		name = name[:i]
	}
	return fmt.Sprintf("%s-%x", name, sum[:8])
}
