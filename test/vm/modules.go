package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// module is a kernel module that is to be packed.
type module struct {
	name    string
	text    []byte // the object file, not compressed
	depends []string
	wishes  []string // should be there before, if there are such modules; may be aliases
	aliases []string
}

// moduleTree is the folder of a kernel's modules. The package has no list of what
// depends on what (depmod makes one when it is installed), so the modules are asked.
type moduleTree struct {
	paths   map[string]string // of the object files, by name
	builtin map[string]bool
}

// openModules looks at a folder such as /lib/modules/VERSION.
func openModules(dir string) (*moduleTree, error) {
	m := &moduleTree{paths: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if name, ok := moduleName(p); ok {
				m.paths[name] = p
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for kernel modules: %w", err)
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("look for built-in modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		if name, ok := moduleName(strings.TrimSpace(line)); ok {
			m.builtin[name] = true
		}
	}
	return m, nil
}

// moduleName returns the name of the module in a file. The kernel takes - for _.
func moduleName(file string) (string, bool) {
	name, rest, ok := strings.Cut(path.Base(filepath.ToSlash(file)), ".ko")
	if !ok || rest != "" && rest != ".xz" {
		return "", false
	}
	return strings.ReplaceAll(name, "-", "_"), true
}

// load reads the modules and all that they depend on. Each stands behind those that
// it needs, so they can be loaded in this order.
func (m *moduleTree) load(names []string) ([]module, error) {
	var list []module
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] || m.builtin[name] {
			return nil
		}
		seen[name] = true
		mod, err := m.read(name)
		if err != nil {
			return err
		}
		for _, d := range mod.depends {
			if err := visit(d); err != nil {
				return fmt.Errorf("%s needs: %w", name, err)
			}
		}
		for _, w := range mod.wishes {
			if m.paths[strings.ReplaceAll(w, "-", "_")] == "" {
				continue
			}
			if err := visit(w); err != nil {
				return fmt.Errorf("%s wishes: %w", name, err)
			}
		}
		list = append(list, mod)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// read reads one module.
func (m *moduleTree) read(name string) (module, error) {
	file, ok := m.paths[name]
	if !ok {
		return module{}, fmt.Errorf("the kernel has no module %s", name)
	}
	text, err := os.ReadFile(file)
	if err == nil && strings.HasSuffix(file, ".xz") {
		text, err = unxz(text)
	}
	if err != nil {
		return module{}, fmt.Errorf("module %s: %w", name, err)
	}
	mod := module{name: name, text: text}
	if err := mod.readInfo(); err != nil {
		return module{}, fmt.Errorf("module %s: %w", name, err)
	}
	return mod, nil
}

// readInfo reads what the module says of itself, in its section .modinfo.
func (m *module) readInfo() error {
	f, err := elf.NewFile(bytes.NewReader(m.text))
	if err != nil {
		return err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return err
	}
	m.parseInfo(info)
	return nil
}

// parseInfo takes the text of .modinfo: NAME=value, each ended by a zero byte.
func (m *module) parseInfo(info []byte) {
	for line := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					m.depends = append(m.depends, d)
				}
			}
		case "softdep":
			// Only what should be there before: "pre: a b post: c".
			before := false
			for _, word := range strings.Fields(value) {
				if strings.HasSuffix(word, ":") {
					before = word == "pre:"
				} else if before {
					m.wishes = append(m.wishes, word)
				}
			}
		case "alias":
			m.aliases = append(m.aliases, value)
		}
	}
}

// unxz unpacks text by the program xz.
func unxz(text []byte) ([]byte, error) {
	cmd := exec.Command("xz", "-dc")
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("xz -dc: %w", err)
	}
	return out, nil
}
