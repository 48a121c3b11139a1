package vm

import (
	"fmt"
	"io"
)

// Types of files in the mode of a cpio entry.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

// cpioWriter writes an archive in the format "newc", the one that the kernel
// unpacks; see Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
// The first error stays.
type cpioWriter struct {
	w   io.Writer
	ino uint32
	n   int64 // bytes written
	err error
}

// add writes one entry. The major and minor number are for device nodes.
func (c *cpioWriter) add(name string, mode uint32, data []byte, major, minor uint32) {
	if int64(len(data)) > 1<<32-1 {
		c.fail(fmt.Errorf("cpio: %s is longer than the format can say", name))
		return
	}
	c.ino++
	links := 1
	if mode&modeDir != 0 {
		links = 2
	}
	c.print("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	c.print("%s\x00", name)
	c.pad()
	c.write(data)
	c.pad()
}

// close writes the entry that ends an archive.
func (c *cpioWriter) close() error {
	c.ino = 0
	c.add("TRAILER!!!", 0, nil, 0, 0)
	return c.err
}

// pad fills up to a multiple of four bytes.
func (c *cpioWriter) pad() { c.write(make([]byte, (4-c.n%4)%4)) }

func (c *cpioWriter) print(format string, args ...any) { c.write(fmt.Appendf(nil, format, args...)) }

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.fail(err)
}

func (c *cpioWriter) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}
