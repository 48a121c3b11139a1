// Package initramfs tests the shell scripts in the folder initramfs at the root of this
// module: what they read on the kernel's command line, and how they call nbd-client. What
// they do in a machine that boots is tested in test/vm.
package initramfs
