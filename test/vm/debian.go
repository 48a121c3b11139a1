package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debianPackages make a small Debian with systemd, and what its initramfs is made with by
// initramfs-tools and by dracut. What they depend on comes along, what is "essential"
// does not.
var debianPackages = []string{
	"systemd-sysv", "udev", "dash", "bash", "coreutils", "util-linux", "mount", "e2fsprogs",
	"base-files", "base-passwd", "libc-bin", "sed", "grep", "findutils", "gzip", "kmod", "procps",
	"initramfs-tools", "busybox",
}

// dracutPackages are those that dracut needs beyond them. It cannot be installed beside
// initramfs-tools, but unpacked.
var dracutPackages = []string{"dracut-network", "iproute2", "isc-dhcp-client", "iputils-arping"}

// debianForm is part of the name of a Debian in the cache. Count it up when what
// unpackDebian makes has changed.
const debianForm = 1

// Debian is a folder with a Debian that was unpacked, not installed: no script of a
// package has run.
type Debian struct{ dir string }

// FetchDebian returns a Debian from the cache, or makes it there of packages, which takes
// half a minute at most. It needs root: for owners of files, and to make /dev/null.
func FetchDebian(ctx context.Context) (*Debian, error) {
	fetching.Lock()
	defer fetching.Unlock()
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	names, version, err := debianClosure(ctx)
	if err != nil {
		// A fresh system has no lists of packages yet.
		if out, e := exec.CommandContext(ctx, "apt-get", "-qq", "update").CombinedOutput(); e != nil {
			return nil, fmt.Errorf("%w; and apt-get update: %w\n%s", err, e, out)
		}
		if names, version, err = debianClosure(ctx); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(cache, "debian-"+version)
	if _, err := os.Stat(filepath.Join(dir, "usr/sbin/mkinitramfs")); err == nil {
		return &Debian{dir}, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("unpack Debian: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return nil, fmt.Errorf("unpack Debian: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := unpackDebian(ctx, tmp, names); err != nil {
		return nil, fmt.Errorf("unpack Debian: %w", err)
	}
	if err := os.Rename(filepath.Join(tmp, "root"), dir); err != nil {
		if _, there := os.Stat(dir); there != nil { // else somebody was faster
			return nil, fmt.Errorf("unpack Debian: %w", err)
		}
	}
	old, _ := filepath.Glob(filepath.Join(cache, "debian-*"))
	for _, o := range old {
		if o != dir {
			os.RemoveAll(o) // a failure costs only space
		}
	}
	return &Debian{dir}, nil
}

// debianClosure asks apt which packages are needed, and returns their names, and a text
// that changes with their versions.
func debianClosure(ctx context.Context) (names []string, version string, err error) {
	empty, err := os.CreateTemp("", "status")
	if err != nil {
		return nil, "", err
	}
	empty.Close()
	defer os.Remove(empty.Name())
	sum := sha256.New()
	seen := map[string]bool{}
	for _, wanted := range [][]string{debianPackages, dracutPackages} {
		args := []string{"install", "-y", "--no-install-recommends", "--print-uris",
			"-o", "Dir::State::status=" + empty.Name(), "-o", "Debug::NoLocking=1"}
		out, err := exec.CommandContext(ctx, "apt-get", append(args, wanted...)...).Output()
		if err != nil {
			return nil, "", fmt.Errorf("ask apt what Debian consists of: %w", withStderr(err))
		}
		for line := range strings.Lines(string(out)) {
			// 'URI' NAME_VERSION_ARCHITECTURE.deb SIZE SUM
			f := strings.Fields(line)
			if len(f) < 3 || !strings.HasPrefix(f[0], "'") {
				continue
			}
			name, _, _ := strings.Cut(f[1], "_")
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
				fmt.Fprintln(sum, f[1])
			}
		}
	}
	if len(names) == 0 {
		return nil, "", errors.New("ask apt what Debian consists of: nothing")
	}
	return names, fmt.Sprintf("%d-%s", debianForm, hex.EncodeToString(sum.Sum(nil)[:8])), nil
}

// withStderr adds what a program said to its error.
func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return err
}

// unpackDebian makes the folder root in dir.
func unpackDebian(ctx context.Context, dir string, names []string) error {
	debs := filepath.Join(dir, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return err
	}
	if err := runIn(ctx, debs, "apt-get", append([]string{"-qq", "download"}, names...)...); err != nil {
		return err
	}
	// Packages still have files in /bin, which is a link in a Debian that was installed,
	// and unpacking replaces links. So the files move afterwards.
	const script = `set -e
mkdir root
for deb in debs/*.deb; do dpkg -x "$deb" root; done
cd root
for d in bin sbin lib lib64; do
	mkdir -p usr/$d
	[ ! -d $d ] || cp -a $d/. usr/$d/
	rm -rf $d
	ln -s usr/$d $d
done
rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/info usr/share/i18n
ln -s mawk usr/bin/awk
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
echo 0123456789abcdef0123456789abcdef >etc/machine-id
echo station >etc/hostname
: >etc/fstab
mknod -m 666 dev/null c 1 3
`
	return runIn(ctx, dir, "sh", "-c", script)
}

// Copy copies the Debian to a new folder, where it can be changed.
func (d *Debian) Copy(ctx context.Context, dir string) (*Debian, error) {
	if err := runIn(ctx, ".", "cp", "-a", d.dir+"/.", dir); err != nil {
		return nil, err
	}
	return &Debian{dir}, nil
}

// Put copies a file of this host into it.
func (d *Debian) Put(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return d.Write(to, string(data), mode)
}

// Write writes a file in it.
func (d *Debian) Write(to, text string, mode os.FileMode) error {
	path := filepath.Join(d.dir, to)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode))
}

// InstallKernel gives it a kernel's modules.
func (d *Debian) InstallKernel(ctx context.Context, k *Kernel) error {
	to := filepath.Join(d.dir, "usr/lib/modules")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := runIn(ctx, ".", "cp", "-a", k.Modules, to); err != nil {
		return err
	}
	config := "boot/config-" + k.Version()
	if err := d.Put(filepath.Join(filepath.Dir(k.Image), filepath.Base(config)), config, 0o644); err != nil {
		return err
	}
	return d.run(ctx, "depmod", k.Version())
}

// run runs a program of the Debian in it.
func (d *Debian) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "chroot", append([]string{d.dir}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Image makes an ext4 file system of it, of size bytes.
func (d *Debian) Image(ctx context.Context, path string, size int64) error {
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		return err
	}
	return runIn(ctx, ".", "mkfs.ext4", "-q", "-F", "-d", d.dir, path)
}

// Version returns the kernel's version, as uname tells it.
func (k *Kernel) Version() string { return strings.TrimPrefix(k.Package, "linux-image-") }
