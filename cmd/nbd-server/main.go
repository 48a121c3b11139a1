// Command nbd-server serves files, block devices and memory as network block
// devices. Its command line and configuration file are those of the reference
// implementation; see nbd-server(8) and nbd-server(5).
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], systemEnv()))
}
