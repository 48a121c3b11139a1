package chain_test

import (
	"context"
	"fmt"

	"nbd.example/nbd/chain"
	"nbd.example/nbd/chain/core"
)

func Example() {
	ctx := context.Background()
	spec, err := core.Registry(core.Files{}).Parse("memory:1G | truncate:512M | readonly")
	if err != nil {
		fmt.Println(err)
		return
	}
	d, err := spec.Open(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	fmt.Println(d.Size(), d.Caps().ReadOnly)
	// Output: 536870912 true
}

// Texts that mean the same have one canonical form.
func ExampleSpec_String() {
	r := core.Registry(core.Files{})
	for _, text := range []string{
		"memory:size=1024M::delay:read=0.01s",
		"memory:1G | delay:read=10ms,write=0",
		"/srv/disk.img",
		`file:"/srv/a,b.img",direct`,
	} {
		spec, err := r.Parse(text)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(spec)
	}
	// Output:
	// memory:1G | delay:read=10ms
	// memory:1G | delay:read=10ms
	// file:/srv/disk.img
	// file:"/srv/a,b.img",direct=true
}

// Errors say where, what, and what was perhaps meant.
func ExampleRegistry_Parse_error() {
	_, err := core.Registry(core.Files{}).Parse("memory:1G | dealy:10ms")
	fmt.Println(err)
	// Output:
	// chain "memory:1G | dealy:10ms", byte 13: unknown layer "dealy"; did you mean "delay"?; layers: readonly, cow, offset, truncate, delay, fault, partition, wait; a file's name that holds a separator is put in double quotes
}

// A program that has settings of its own adds them without quoting anything.
func ExampleSpec_With() {
	r := core.Registry(core.Files{})
	spec, err := r.File("/srv/a | b.img")
	if err != nil {
		fmt.Println(err)
		return
	}
	spec, err = spec.With("cow", map[string]string{"dir": "/var/tmp", "sparse": "true"})
	fmt.Println(spec, err)
	// Output: file:"/srv/a | b.img" | cow:dir=/var/tmp,sparse=true <nil>
}

func ExampleParseSize() {
	n, err := chain.ParseSize("512M")
	fmt.Println(n, err)
	_, err = chain.ParseSize("512MB")
	fmt.Println(err)
	// Output:
	// 536870912 <nil>
	// "512MB" might mean steps of 1000 or 1024; write 512M or 512MiB for 1024
}
