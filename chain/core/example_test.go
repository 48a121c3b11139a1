package core_test

import (
	"context"
	"fmt"

	"nbd.example/nbd/chain/core"
)

// A program that serves what its user writes down.
func ExampleRegistry() {
	spec, err := core.Registry(core.Files{}).Parse("memory:1G | readonly")
	if err != nil {
		fmt.Println(err)
		return
	}
	dev, err := spec.Open(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dev.Close()
	fmt.Println(dev.Size(), dev.Caps().ReadOnly)
	// Output: 1073741824 true
}
