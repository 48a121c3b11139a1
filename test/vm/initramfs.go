package vm

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/vm/guest"
)

// Contents says what goes into the archive of a machine.
type Contents struct {
	Init     string            // path of the built init
	Server   string            // path of the built nbd-server, or ""
	Client   string            // path of the built nbd-client, or "": see guest.ClientPath
	Programs []string          // of this host, as testgate.Find finds them
	Applets  []string          // of busybox, to be called by their own names
	Files    []string          // other files of this host, by absolute path, if they exist
	Modules  []string          // to be loaded, with what they depend on
	OnDemand []string          // modules that are loaded when the kernel asks for them
	Options  map[string]string // of modules, by their names
	Network  bool              // a network with the host; see guest.HostAddress
}

// archive is an initramfs in the making. Errors are kept for the end.
type archive struct {
	cpio cpioWriter
	seen map[string]bool // names that are in it
	err  error
}

// libraryDir is where the machine has shared libraries; see guest.Environment.
const libraryDir = "lib/vm"

// WriteArchive writes the initramfs for a kernel.
func WriteArchive(w io.Writer, k *Kernel, c Contents) error {
	a := &archive{cpio: cpioWriter{w: w}, seen: map[string]bool{}}
	a.node("dev/console", 5, 1)
	a.host("init", c.Init)
	if c.Server != "" {
		a.host("bin/nbd-server", c.Server)
	}
	if c.Client != "" {
		a.host(strings.TrimPrefix(guest.ClientPath, "/"), c.Client)
	}
	a.link("sbin/modprobe", "/init")
	a.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n"))
	for _, p := range c.Programs {
		a.program(p)
	}
	a.program("busybox")
	for _, name := range c.Applets {
		a.link("bin/"+name, "busybox")
	}
	for _, f := range c.Files {
		if _, err := os.Stat(f); err == nil {
			a.host(strings.TrimPrefix(filepath.ToSlash(f), "/"), f)
		}
	}
	a.modules(k, c)
	if a.err == nil {
		a.err = a.cpio.close()
	}
	if a.err != nil {
		return fmt.Errorf("pack an initramfs: %w", a.err)
	}
	return nil
}

// fail keeps the first error.
func (a *archive) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// enter makes the folders above name. It reports whether name is new.
func (a *archive) enter(name string) bool {
	if a.seen[name] {
		return false
	}
	a.seen[name] = true
	if dir := path.Dir(name); dir != "." && a.enter(dir) {
		a.cpio.add(dir, modeDir|0o755, nil, 0, 0)
	}
	return true
}

func (a *archive) file(name string, mode uint32, data []byte) {
	if a.enter(name) {
		a.cpio.add(name, modeFile|mode, data, 0, 0)
	}
}

func (a *archive) link(name, target string) {
	if a.enter(name) {
		a.cpio.add(name, modeLink|0o777, []byte(target), 0, 0)
	}
}

func (a *archive) node(name string, major, minor uint32) {
	if a.enter(name) {
		a.cpio.add(name, modeChar|0o600, nil, major, minor)
	}
}

// host adds a file of this host.
func (a *archive) host(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil {
		a.fail(err)
		return
	}
	a.file(name, 0o755, data)
}

// program adds a program of this host, with the libraries it needs. It lies in /bin
// there.
func (a *archive) program(name string) {
	from := testgate.Find(name)
	if from == "" {
		a.fail(fmt.Errorf("no program %s", name))
		return
	}
	a.host("bin/"+filepath.Base(name), from)
	a.libraries(from)
}

// libraries adds what an ELF file is linked to, and what that is linked to.
func (a *archive) libraries(file string) {
	f, err := elf.Open(file)
	if err != nil {
		a.fail(fmt.Errorf("%s: %w", file, err))
		return
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		text, err := io.ReadAll(p.Open())
		if err != nil {
			a.fail(fmt.Errorf("%s: %w", file, err))
			return
		}
		loader := strings.TrimRight(string(text), "\x00")
		a.host(strings.TrimPrefix(loader, "/"), loader)
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		a.fail(fmt.Errorf("%s: %w", file, err))
		return
	}
	runpath, _ := f.DynString(elf.DT_RUNPATH) // most have none
	for _, name := range names {
		a.library(name, runpath)
	}
}

// library adds one shared library.
func (a *archive) library(name string, runpath []string) {
	to := libraryDir + "/" + name
	if a.seen[to] {
		return
	}
	dirs := append(runpath, "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	for _, dir := range dirs {
		from := filepath.Join(dir, name)
		if _, err := os.Stat(from); err == nil {
			a.host(to, from)
			a.libraries(from)
			return
		}
	}
	a.fail(fmt.Errorf("no shared library %s", name))
}

// modules adds the modules, and the list by which init loads them.
func (a *archive) modules(k *Kernel, c Contents) {
	tree, err := openModules(k.Modules)
	if err != nil {
		a.fail(err)
		return
	}
	names := c.Modules
	if c.Network {
		names = append([]string{"virtio_pci", "virtio_net"}, names...)
	}
	list, err := tree.load(names)
	if err != nil {
		a.fail(fmt.Errorf("%s: %w", k.Package, err))
		return
	}
	eager := len(list)
	if list, err = tree.load(append(names, c.OnDemand...)); err != nil {
		a.fail(fmt.Errorf("%s: %w", k.Package, err))
		return
	}
	plan := guest.Plan{Network: c.Network}
	for i, m := range list {
		a.file(guest.ModulePath(m.name)[1:], 0o644, m.text)
		plan.Modules = append(plan.Modules, guest.Module{
			Name: m.name, Options: c.Options[m.name], Depends: append(m.depends, m.wishes...), Aliases: m.aliases,
			Lazy: i >= eager,
		})
	}
	text, err := json.Marshal(plan)
	if err != nil {
		a.fail(err)
		return
	}
	a.file(guest.PlanPath[1:], 0o644, text)
}
