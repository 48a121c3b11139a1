package vm

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestModuleInfo(t *testing.T) {
	var m module
	m.parseInfo([]byte("license=GPL\x00depends=a,b-c\x00alias=block-major-43-*\x00alias=x\x00" +
		"softdep=pre: d crypto-e post: f\x00\x00depends=\x00noise"))
	want := module{depends: []string{"a", "b-c"}, wishes: []string{"d", "crypto-e"}, aliases: []string{"block-major-43-*", "x"}}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got %+v, want %+v", m, want)
	}
}

func TestModuleName(t *testing.T) {
	for file, want := range map[string]string{
		"/x/dm-mod.ko": "dm_mod", "nbd.ko.xz": "nbd", "nbd.ko.zst": "", "modules.order": "", "a.koala": "",
	} {
		if got, ok := moduleName(file); got != want || ok != (want != "") {
			if want != "" || ok {
				t.Errorf("moduleName(%q) = %q, %t", file, got, ok)
			}
		}
	}
}

func TestModuleTree(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("kernel/fs/broken.ko", "not ELF")
	write("modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/lib/crc-x.ko\n")
	tree, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := tree.load([]string{"ext4", "crc_x", "crc-x"}); err != nil || len(list) != 0 {
		t.Errorf("built-in modules: %v, %v", list, err)
	}
	for name, want := range map[string]string{"nosuch": "no module nosuch", "broken": "module broken"} {
		if _, err := tree.load([]string{name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("load %s: %v", name, err)
		}
	}
	if _, err := openModules(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("opened a folder that is not there")
	}
}

func TestOpenKernel(t *testing.T) {
	dir := t.TempDir()
	if _, err := openKernel(dir, "linux-image-1.2"); err == nil {
		t.Error("opened a kernel that is not there")
	}
	for _, name := range []string{"boot/vmlinuz-1.2", "usr/lib/modules/1.2/modules.builtin"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k, err := openKernel(dir, "linux-image-1.2")
	if err != nil || k.Image != filepath.Join(dir, "boot/vmlinuz-1.2") || k.Modules != filepath.Join(dir, "usr/lib/modules/1.2") {
		t.Errorf("openKernel = %+v, %v", k, err)
	}
}
