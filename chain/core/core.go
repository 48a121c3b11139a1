// Package core fills a registry with the usual back ends and layers.
//
// # Concepts
//
// Package chain knows how chains are written, and no element. This package knows
// the elements of this module that need nothing but the operating system, and
// declares for each what it is called and what can be said about it. A program
// that carries more adds to what [Registry] returns; one that carries less fills a
// registry by itself.
package core

import (
	"nbd.example/nbd/chain"
)

// Registry returns a new registry with the back ends file, memory, null and
// pattern, and the layers readonly, cow, offset, truncate, delay and fault.
func Registry() *chain.Registry {
	r := &chain.Registry{}
	addBackends(r)
	addLayers(r)
	return r
}
