// Init is what a virtual machine of the tests runs: the first process, the agent that
// runs scenarios, and the kernel's modprobe, by the name under which it is called.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"nbd.example/nbd/test/vm/guest"
	"nbd.example/nbd/test/vm/scenarios"
)

func main() {
	switch {
	case filepath.Base(os.Args[0]) == "modprobe":
		if err := guest.Modprobe(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
	case len(os.Args) > 1 && os.Args[1] == guest.AgentWord:
		if err := guest.Agent(slices.Concat(scenarios.Table(), scenarios.Little(), scenarios.Beside(), scenarios.Broken())); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
	case len(os.Args) > 1 && os.Args[1] == guest.SystemAgentWord:
		if err := guest.AgentOfSystem(scenarios.System()); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
	case len(os.Args) > 1 && os.Args[1] == guest.EatWord:
		if err := guest.Eat(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "eat:", err)
			os.Exit(1)
		}
	case os.Getpid() == 1:
		guest.Boot()
	default:
		fmt.Fprintln(os.Stderr, "this program is made to be the first process of a virtual machine")
		os.Exit(2)
	}
}
