package vm

import (
	"runtime"
	"slices"

	"nbd.example/nbd/internal/testgate"
)

// Need is what virtual machines need of a host, and the given programs. Its kind is
// "vm".
func Need(programs ...string) testgate.Need {
	return testgate.Own("vm", func() string {
		if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
			return "needs Linux on amd64, this is " + runtime.GOOS + " on " + runtime.GOARCH
		}
		for _, p := range slices.Concat([]string{qemu, "busybox", "apt-cache", "apt-get", "dpkg", "xz"}, programs) {
			if testgate.Find(p) == "" {
				return "needs the program " + p
			}
		}
		return ""
	})
}
