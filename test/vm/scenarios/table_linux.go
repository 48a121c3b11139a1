package scenarios

import (
	"slices"

	"nbd.example/nbd/test/vm/guest"
)

// all are the series of kernels. Those who have reason to name fewer than these do so
// in the table.
var all = []string{"6.1", "6.12"}

// one is the series on which CI runs what is hardly about the kernel, or takes long.
var one = []string{"6.12"}

// Processors is how many the machines have: as many as a device has connections at most,
// since the kernel uses no more connections than it has processors.
const Processors = 4

// Groups returns the scenarios in the order in which they run. Each group has a machine of
// its own, beside those of the others: there is one of those that break things, and wait a
// lot, and one of all others.
func Groups() [][]guest.Scenario {
	return [][]guest.Scenario{slices.Concat(ofServer(), ofClient(), ofDriver()), ofKeeper()}
}

// Table returns the scenarios of all groups.
func Table() []guest.Scenario { return slices.Concat(Groups()...) }

// ofServer are those about our server, mostly with the reference's client.
func ofServer() []guest.Scenario {
	return []guest.Scenario{
		{Name: "attach-netlink", Series: all, Run: attachNetlink},
		{Name: "attach-ioctl", Series: all, Run: attachIoctl},
		{Name: "read-only", Series: all, Run: readOnly},
		{Name: "ext4", Series: all, Run: ext4},
		{Name: "file-systems", Series: all, Run: fileSystems},
		{Name: "image-on-ext4", Series: all, Main: one, Run: imageOnExt4},
		{Name: "network", Series: all, Main: one, Run: network, Host: networkHost},
		{Name: "copy-on-write", Series: all, Main: one, Run: copyOnWrite},
		{Name: "loop-device", Series: all, Main: one, Run: loopDevice},
		{Name: "sectors", Series: all, Main: one, Run: sectors},
		{Name: "mounted-device", Series: all, Main: one, Run: mountedDevice},
		{Name: "stuck-writes", Series: all, Main: one, Run: stuckWrites},
		{Name: "bad-sector", Series: all, Run: badSector},
		{Name: "bad-file", Series: all, Main: one, Run: badFile},
		{Name: "fsyncs", Series: all, Main: one, Run: fsyncs},
		{Name: "lost-flush", Series: all, Main: one, Run: lostFlush},
		{Name: "drain", Series: all, Main: one, Run: drain},
		{Name: "drain-ext4", Series: all, Main: one, Run: drainExt4},
		{Name: "vsock", Series: all, Run: vsocks},
	}
}

// ofKeeper are those about devices that our client keeps while things break.
func ofKeeper() []guest.Scenario {
	return []guest.Scenario{
		{Name: "restarts", Series: all, Run: restarts},
		{Name: "frozen-server", Series: all, Run: frozen},
		{Name: "stuck-disk", Series: all, Run: stuckDisk},
		{Name: "lost-packets", Series: all, Main: one, Run: dropped},
		{Name: "reset-connections", Series: all, Main: one, Run: resets},
		{Name: "moved-server", Series: all, Main: one, Run: moved},
		{Name: "crashed-client", Series: all, Run: crashedClient},
		{Name: "on-failure", Series: all, Run: onFailure},
		{Name: "forced", Series: all, Main: one, Run: forced},
		{Name: "bad-sector-kept", Series: all, Run: badSectorKept},
		{Name: "grown", Series: all, Run: grown},
		{Name: "grown-alone", Series: all, Run: grownAlone, Long: true},
		{Name: "peers", Series: all, Main: one, Run: peers, Host: peersHost},
		{Name: "tls", Series: all, Run: overTLS},
		{Name: "times", Series: all, Main: one, Run: times},
		{Name: "times-of-four", Series: all, Run: timesOfFour, Long: true},
		{Name: "fio", Series: all, Main: one, Run: fio, Programs: []string{"fio"}},
		{Name: "many-restarts", Series: all, Run: manyRestarts, Long: true},
	}
}

// ofClient are those about what our client can be told.
func ofClient() []guest.Scenario {
	return []guest.Scenario{
		{Name: "client-forms", Series: all, Run: clientForms},
		{Name: "readme", Series: all, Main: one, Run: readme, Host: readmeHost},
		{Name: "client-life", Series: all, Run: clientLife},
		{Name: "client-serve", Series: all, Run: clientServe},
		{Name: "client-service", Series: all, Run: clientService},
		{Name: "client-ends", Series: all, Main: one, Run: clientEnds},
		{Name: "client-oldstyle", Series: all, Main: one, Run: clientOldstyle},
		{Name: "client-vsock", Series: all, Main: one, Run: clientVSock},
		{Name: "client-namespace", Series: all, Main: one, Run: otherNamespace},
		{Name: "client-requests", Series: all, Main: one, Run: shortRequests, Host: shortHost},
		{Name: "client-errors", Series: all, Run: clientErrors},
		{Name: "client-rounds", Series: all, Run: clientRounds},
		{Name: "many-rounds", Series: all, Run: manyRounds, Long: true},
		{Name: "client-zeroes", Series: all, Run: zeroes},
	}
}

// ofDriver are those about the packages for the kernel's interfaces.
func ofDriver() []guest.Scenario {
	return []guest.Scenario{
		{Name: "kernel-attach", Series: all, Run: kernelAttach},
		{Name: "kernel-partitions", Series: all, Run: kernelPartitions},
		{Name: "kernel-blocks", Series: all, Run: kernelBlocks},
		{Name: "kernel-reconnect", Series: all, Run: kernelReconnect},
		{Name: "kernel-rounds", Series: all, Run: kernelRounds},
		{Name: "kernel-refusals", Series: all, Run: kernelRefusals},
		{Name: "kernel-stuck", Series: all, Run: kernelStuck},
		{Name: "kernel-nodes", Series: all, Run: kernelNodes},
		{Name: "kernel-ioctl-death", Series: all, Run: kernelIoctlDeath},
		{Name: "kernel-facts", Series: all, Run: kernelFacts},
	}
}

// Programs returns the programs of the host that the scenarios use. They are found as
// testgate.Find does.
func Programs() []string {
	return []string{"nbd-client", "mkfs.ext4", "e2fsck", "dmsetup", "fstrim", "blkdiscard", "blockdev",
		"mkfs.xfs", "xfs_repair", "mkfs.btrfs", "btrfs", "mkfs.vfat", "fsck.vfat", "tc", "resize2fs"}
}

// Files returns other files of the host that these programs read, where they exist.
func Files() []string { return []string{"/etc/mke2fs.conf"} }

// Modules returns the kernel modules that the scenarios use, and their options.
func Modules() (names []string, options map[string]string) {
	return []string{"nbd", "loop", "dm-mod", "crc32c_generic", "vsock_loopback"},
		map[string]string{"nbd": "nbds_max=4 max_part=4", "loop": "max_loop=4"}
}

// OnDemand returns the modules that the kernel loads when a scenario needs them.
func OnDemand() []string {
	return []string{"xfs", "btrfs", "vfat", "nls_cp437", "nls_ascii", "sch_netem"}
}
