package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// CacheVariable names the folder for kernels, in the environment.
const CacheVariable = "NBD_VM_CACHE"

// Kernel is an unpacked kernel package.
type Kernel struct {
	Package string // such as linux-image-6.1.0-56-cloud-amd64
	Image   string // path of vmlinuz
	Modules string // folder of the modules
}

// fetching is held while something is looked for in the cache, or put there: nobody else
// need do it again, and apt-get update cannot run twice at a time.
var fetching sync.Mutex

// cacheDir returns the folder for kernels, which may not exist.
func cacheDir() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for kernels, set %s: %w", CacheVariable, err)
	}
	return filepath.Join(dir, "nbd-vm"), nil
}

// FetchKernel returns Debian's present cloud kernel of a series, such as "6.12". It is
// downloaded if the cache does not have it; older ones of the series are then removed
// from the cache.
func FetchKernel(ctx context.Context, series string) (*Kernel, error) {
	fetching.Lock()
	defer fetching.Unlock()
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	pkg, err := resolve(ctx, series)
	if err != nil {
		// A fresh system has no lists of packages yet.
		if pkg, err = refresh(ctx, series, err); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(cache, pkg)
	if k, err := openKernel(dir, pkg); err == nil {
		return k, nil
	}
	if err := download(ctx, cache, pkg); err != nil {
		// The package may be gone: the list of packages is older than it.
		if pkg, err = refresh(ctx, series, err); err != nil {
			return nil, err
		}
		dir = filepath.Join(cache, pkg)
		if err := download(ctx, cache, pkg); err != nil {
			return nil, err
		}
	}
	removeOthers(cache, series, pkg)
	return openKernel(dir, pkg)
}

// resolve asks apt which package is the kernel of a series. The number of the kernel's
// ABI is part of the name and goes up with security updates, so it cannot be written
// down.
func resolve(ctx context.Context, series string) (string, error) {
	for _, meta := range []string{"linux-image-" + series + "-cloud-amd64", "linux-image-cloud-amd64"} {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", meta).Output()
		if err != nil {
			continue // no such package in this release of Debian
		}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "linux-image-"+series+".") {
				return word, nil
			}
		}
	}
	return "", fmt.Errorf("find a cloud kernel of series %s: apt-cache knows none", series)
}

// refresh reads the lists of packages anew, after something failed for cause, and
// resolves the series again.
func refresh(ctx context.Context, series string, cause error) (string, error) {
	if out, err := exec.CommandContext(ctx, "apt-get", "-qq", "update").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w; and apt-get update: %w\n%s", cause, err, out)
	}
	return resolve(ctx, series)
}

// download puts an unpacked package into the cache, as a whole or not at all.
func download(ctx context.Context, cache, pkg string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("download a kernel: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return fmt.Errorf("download a kernel: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := runIn(ctx, tmp, "apt-get", "-qq", "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download %s: got %d packages (%v)", pkg, len(debs), err)
	}
	if err := runIn(ctx, tmp, "dpkg", "-x", debs[0], "root"); err != nil {
		return err
	}
	root := filepath.Join(tmp, "root")
	if _, err := openKernel(root, pkg); err != nil {
		return err
	}
	dir := filepath.Join(cache, pkg)
	if err := os.Rename(root, dir); err != nil {
		// Somebody else may have been faster, or left something broken.
		if _, bad := openKernel(dir, pkg); bad != nil {
			return fmt.Errorf("keep kernel %s: %w; what is there is of no use (%w): remove it", pkg, err, bad)
		}
	}
	return nil
}

// openKernel looks into an unpacked package.
func openKernel(dir, pkg string) (*Kernel, error) {
	version := strings.TrimPrefix(pkg, "linux-image-")
	k := &Kernel{Package: pkg, Image: filepath.Join(dir, "boot", "vmlinuz-"+version)}
	_, err := os.Stat(k.Image)
	for _, lib := range []string{"usr/lib", "lib"} {
		modules := filepath.Join(dir, lib, "modules", version)
		if _, e := os.Stat(filepath.Join(modules, "modules.builtin")); e == nil {
			k.Modules = modules
		}
	}
	if k.Modules == "" {
		err = errors.Join(err, fmt.Errorf("no modules of version %s", version))
	}
	if err != nil {
		return nil, fmt.Errorf("kernel in %s: %w", dir, err)
	}
	return k, nil
}

// removeOthers removes kernels that pkg takes the place of. A failure costs only space.
func removeOthers(cache, series, pkg string) {
	old, _ := filepath.Glob(filepath.Join(cache, "linux-image-"+series+".*"))
	for _, dir := range old {
		if filepath.Base(dir) != pkg {
			os.RemoveAll(dir)
		}
	}
}

// runIn runs a program in a folder.
func runIn(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
