package nbdcmd

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nbd.example/nbd/internal/trlog"
)

// tool returns the tree of commands for a program of that name: those of the reference are
// called by names of their own, and have options of their own.
func tool(name string, env *Env) *cobra.Command {
	var c *cobra.Command
	switch name {
	case "nbd-trdump":
		c = oldTrdump()
	case "nbd-trplay":
		c = oldTrplay()
	default:
		return New(env)
	}
	return program(c, env)
}

// oldTrdump is the reference's nbd-trdump, which reads standard input.
func oldTrdump() *cobra.Command {
	c := newTrdump()
	c.Use = "nbd-trdump [--json] [FILE]"
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error { return cutShort(cmd, run(cmd, args)) }
	return c
}

// cutShort has a log that ends inside a record be no failure, as it is for the reference's
// tools: the server may be writing it.
func cutShort(cmd *cobra.Command, err error) error {
	if errors.Is(err, trlog.ErrTruncated) {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.Name(), err)
		return nil
	}
	return err
}

// oldTrplay is the reference's nbd-trplay, which takes files as options.
func oldTrplay() *cobra.Command {
	var f playFlags
	image, log := "", ""
	c := &cobra.Command{
		Use:     "nbd-trplay -i IMAGE -l LOG [-m N] [-b BYTES] [-v]",
		Short:   "make the changes of a transaction log again",
		Long:    `Does what "nbd trplay LOG IMAGE" does, which "nbd trplay --help" explains, with the options of the reference. A log that ends in the middle of a record is no failure.`,
		Example: `  nbd-trplay -i disk.img -l disk.log -m 1000`,
		Args:    cobra.NoArgs,
		RunE: runs(func(cmd *cobra.Command, _ []string) error {
			switch {
			case log == "" || image == "":
				return errors.New("-i, the image, and -l, the log, are needed, both")
			case cmd.Flags().Changed("max-blocks") && f.blocks == 0:
				return errors.New("-m is 0; want the number of blocks to stop at")
			}
			f.cutShort = func(err error) error { return cutShort(cmd, err) }
			return play(cmd, []string{log, image}, &f)
		}),
	}
	playOptions(c.Flags(), &f)
	c.Flags().StringVarP(&image, "image", "i", "", "make the changes in this `IMAGE`")
	c.Flags().StringVarP(&log, "log", "l", "", "read them from this `LOG`")
	return command(c)
}

// program completes a tree of commands.
func program(root *cobra.Command, env *Env) *cobra.Command {
	root.Version = env.Version
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetVersionTemplate(root.Name() + " {{.Version}}\n")
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	return root
}
