package main

import (
	"fmt"

	"nbd.example/nbd/internal/memlock"
	"nbd.example/nbd/internal/nbdconf"
)

// prepareForSwap prepares the process for clients that swap on this very machine, if the
// configuration says that there are some: memory becomes free only if the server writes
// what they swap out, so it must never wait for memory itself. It is called before
// privileges are given up, which it needs, and before there are clients: it stops all
// threads for a moment, which one that waits for swap would make last for ever.
func (p *program) prepareForSwap(g *nbdconf.Generic) error {
	if p.swap = p.flags.Swap || g.Swap; !p.swap {
		return nil
	}
	warnings, err := memlock.Lock(memlock.Options{})
	if err != nil {
		return fmt.Errorf("prepare for swap: %w", err)
	}
	for _, w := range warnings {
		p.log.Warn(w.String())
	}
	return nil
}

// warnOfCache says which exports must not be used for swap.
func (p *program) warnOfCache(x *nbdconf.Export, src source) {
	if !p.swap || src.path == "" || x.Temporary {
		return
	}
	if src.spec != nil {
		if name, args := src.spec.Backend(); name == "tree" || args.Bool("direct") {
			return
		}
	}
	p.log.Warn("an export is not fit for swap on this machine: what is written to it takes the page cache's memory before it frees any; with direct it does not",
		"export", x.Name, "write", "exportname = file:"+src.path+",direct")
}
