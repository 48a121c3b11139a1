// Package vm runs nbd-server under real kernels: virtual machines that boot
// Debian's kernels in QEMU, in which the kernel's own NBD client is attached to our
// server and used. What no test with sockets can show is seen here: file systems,
// loop and device mapper devices behind the server, and what nbd.ko does when a
// server ends.
//
//	NBD_TEST_RUN=vm go test -timeout 1h ./test/vm          # what CI runs
//	NBD_TEST_RUN=vm-long go test -timeout 3h ./test/vm     # the rest; .ci/vm-long
//	go test ./test/vm -run 'VM/6.1$/ext4' -v               # one scenario on one kernel
//
// (Patterns of -run match anywhere: without the $, 6.1 is 6.12 too.) The names of the
// scenarios stand in scenarios/table_linux.go, and in swap_linux.go those of
// TestLittleMemory. The rest is what takes long, and what CI runs on one kernel only.
//
// The tests run only when they are asked for, since they fetch 60 MB of kernels the
// first time and take minutes: by NBD_TEST_RUN, by "vm" in NBD_TEST_MUST_RUN, or
// by a -run that names them. They need amd64 Linux with Debian's tools; [Need] lists
// the programs, and .ci/install installs them. They need neither root nor KVM.
//
// # How it works
//
//   - kernels.go finds out which kernel packages Debian has now, and keeps them
//     unpacked in a cache folder.
//   - modules.go picks the kernel modules that are wanted, with what they depend on.
//   - initramfs.go and cpio.go pack the archive that the kernel unpacks as its root:
//     modules, programs of this host with their libraries, and two programs of ours,
//     nbd-server and the one in the folder init.
//   - harness.go boots the machine and talks with it over its second serial line: a
//     line names the scenario to run, lines of JSON come back (guest/event.go). The
//     first serial line is the console of the kernel.
//   - In the machine, init (process 1) mounts what there is to mount, loads the
//     modules, and starts itself a second time as the agent, which runs scenarios.
//
// TestRootOnNBD and TestUnits boot a whole Debian with systemd in place of that init
// (debian.go, system_linux_test.go), in which the agent is a service. The station without a
// disk has its network from a second machine, with dnsmasq in it, at the other end of a wire
// between two QEMUs (dhcp_linux_test.go): that needs no rights.
//
// As many tests run at a time as the host has processors (-parallel), since each keeps one
// busy at most; those of TestVM have two machines each, one of which mostly waits for timers
// of the kernel. One machine runs many scenarios, one after the other.
// A scenario that fails, or leaves something behind (a mount, an attached device, a
// process), costs the machine: the next one gets a new one. A scenario passes only if the
// machine says so, with the number that was drawn for this run; a crash, a hang or a
// missing scenario are failures. A machine that does not come up is started a second time,
// since QEMU without KVM sometimes restarts before the kernel has begun.
//
// # Add a scenario
//
// Scenarios are Go functions that run in the machine, in the folder scenarios. They
// get a [testing.TB], so that everything of test/harness can be used, and the helpers
// in the folder guest: attach, mount, loop devices, device mapper.
//
//  1. Write a function func(t *guest.T) there. Whatever it sets up, it undoes by
//     t.Cleanup; the helpers do that by themselves.
//  2. Put it into the table in scenarios/table_linux.go, with the series of kernels
//     that it is for; what takes long runs on one of them (Main), or on none (Long), if
//     it is not asked for by its name or as one of the rest. Further programs of the
//     host go to Programs, and modules to Modules, in the same file. Its name goes into
//     .ci/must-run.txt.
//  3. If it needs something outside of the machine, a server for example, give it a
//     Host function, which runs before in the test itself. The machine reaches the
//     loopback interface of the host at guest.HostAddress.
//  4. What it measures it logs behind guest.Measured: CI shows such lines, and of all
//     else that tests log only that of those that fail.
//
// What must be there after a power cut, package replay finds out from the server's
// transaction log.
//
// # See what happened
//
// With NBD_VM_LOG=/some/folder, the console of each machine is kept there. Without it,
// its end is shown when a scenario fails. NBD_VM_CACHE is the folder for kernels; the
// default lies in the user's cache folder.
package vm
