package null_test

import (
	"context"
	"fmt"

	"nbd.example/nbd/backend/null"
	"nbd.example/nbd/block"
)

// A disk of an exabyte that costs nothing.
func Example() {
	b, err := null.New(null.Config{Size: 1 << 60})
	if err != nil {
		fmt.Println(err)
		return
	}
	dev, err := block.New(b)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dev.Close()
	p := []byte("full")
	err = dev.ReadAt(context.Background(), p, 1<<59)
	fmt.Println(p, err)
	// Output: [0 0 0 0] <nil>
}
