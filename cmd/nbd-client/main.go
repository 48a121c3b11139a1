// Command nbd-client attaches exports of NBD servers as block devices of Linux, and
// keeps them attached. Its command line and its table of devices are those of the
// reference implementation; see nbd-client(8) and nbdtab(5).
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], systemEnv()))
}
