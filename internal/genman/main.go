// Command genman writes the manual pages from the tables that the programs
// themselves read their command lines and their configuration with, and those of nbd
// from its tree of commands. So the pages cannot name an option or a key that is not
// there, nor miss one that is.
//
//	go run ./internal/genman -dir man
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

// pages are the files that are written.
var pages = withNbd(map[string]func() string{
	"nbd-server.8": server8, "nbd-server.5": server5,
	"nbd-client.8": client8, "nbdtab.5": nbdtab5,
})

func main() {
	dir := flag.String("dir", "man", "the folder to write the pages to")
	flag.Parse()
	for name, page := range pages {
		if err := os.WriteFile(filepath.Join(*dir, name), []byte(page()), 0o644); err != nil {
			fmt.Fprintf(os.Stderr, "genman: %v\n", err)
			os.Exit(1)
		}
	}
}
