// Command nbd-server serves files, block devices and memory as network block
// devices. Its command line and configuration file are those of the reference
// implementation; see nbd-server(8) and nbd-server(5).
package main

import (
	"context"
	"os"

	"nbd.example/nbd/internal/hooks"
	"nbd.example/nbd/internal/secrets"
)

func main() {
	if hooks.Main() || secrets.Main() {
		return
	}
	if status, done := asService(os.Args[1:]); done {
		os.Exit(status)
	}
	os.Exit(run(context.Background(), os.Args[1:], systemEnv()))
}
