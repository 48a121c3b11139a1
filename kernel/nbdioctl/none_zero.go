//go:build !(mips || mipsle || mips64 || mips64le || ppc64 || ppc64le || sparc64)

package nbdioctl

// ioNone is what _IO adds to numbers here: nothing.
const ioNone = 0
