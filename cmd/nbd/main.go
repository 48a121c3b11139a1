// Command nbd is a set of tools for network block devices: it controls a running
// nbd-server, and reads and replays transaction logs. See nbd(1).
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"

	"nbd.example/nbd/internal/nbdcmd"
)

// version is set by the linker for a release.
var version = "development"

func main() {
	// The first interrupt ends what is under way in order, a second one at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(nbdcmd.Main(ctx, os.Args, nbdcmd.System(versionText())))
}

// versionText is the version of a release, or what the build says of itself.
func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "development" && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}
