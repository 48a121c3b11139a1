package nbdcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/trlog"
)

func newTrdump() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "trdump [--json] [FILE]",
		Short: "print a transaction log",
		Long: `Prints the transaction log FILE, or standard input: what clients of an export have asked for, and what they were answered. Logs are written by nbd-server where an export has the key transactionlog; those of the reference implementation can be read, too, and the output is that of its nbd-trdump.

A line that begins with > is a request, with its cookie (H), command (C), offset (O) and length (L); one that begins with < is the answer to the request with that cookie, with its error number (E); <S: is the header of a structured reply, which only the reference logs. TRACE_OPTION DATALOG says whether what was written is in the log from there on. Where the server could not write its log, the output says how many records are missing.

If the log ends in the middle of a record, all before it is printed, and the exit status is 1.

As nbd-trdump, a link to nbd by that name, it is the reference's tool, which reads standard input, and for which such an end is none.`,
		Example: `  nbd trdump /var/log/nbd/disk.log
  nbd trdump --json /var/log/nbd/disk.log | jq 'select(.error != "OK")'`,
		Args: cobra.MaximumNArgs(1),
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			log, err := openLog(cmd, args)
			if err != nil {
				return err
			}
			defer log.Close()
			if asJSON {
				return trlog.DumpJSON(cmd.OutOrStdout(), log)
			}
			return trlog.Dump(cmd.OutOrStdout(), log)
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object for each record, one a line")
	return command(c)
}

// openLog opens the log that the first argument names, or standard input.
func openLog(cmd *cobra.Command, args []string) (io.ReadCloser, error) {
	if len(args) == 0 || args[0] == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	return os.Open(args[0])
}

// playFlags are those of trplay.
type playFlags struct {
	blocks, size uint64
	flush, force bool
	verbose      bool
	json         bool
	// cutShort, if it is not nil, judges the end of a log that is inside a record.
	cutShort func(error) error
}

func newTrplay() *cobra.Command {
	var f playFlags
	c := &cobra.Command{
		Use:   "trplay [OPTION ...] FILE TARGET",
		Short: "make the changes of a transaction log again",
		Long: `Makes the changes that the transaction log FILE records (- is standard input) on TARGET, which is an NBD URI, or the path of an image or a block device (a server of before 2011, which knows no names of exports, is one without a name: nbd://host:2000): writes, trims and zeroes, in the order of the log. Begun with a copy of what the export held when the log began, that leads to what it held when the log ended; with --max-blocks, to what it held on the way: so a file system can be looked at as a crash at any moment would have left it.

The log must hold what was written (the key datalog). Changes that the server had refused are passed over. Where records are missing, trplay stops, unless it is told to go on by --force. If the log ends in the middle of a record, all before it is played, and the exit status is 1.

As nbd-trplay, a link to nbd by that name, it is the reference's tool, with its options: -i IMAGE -l LOG [-m N] [-b BYTES] [-v]. For that, such an end is none.`,
		Example: `  nbd trplay disk.log nbd://localhost/copy
  nbd trplay --max-blocks 1000 disk.log image`,
		Args: cobra.ExactArgs(2),
		RunE: runs(func(cmd *cobra.Command, args []string) error { return play(cmd, args, &f) }),
	}
	playOptions(c.Flags(), &f)
	c.Flags().BoolVar(&f.flush, "flush", false, "make changes stable where the clients did, and not only at the end")
	c.Flags().BoolVarP(&f.force, "force", "f", false, "go on where records are missing")
	c.Flags().BoolVar(&f.json, "json", false, "print what was done as a JSON object")
	return command(c)
}

// playOptions are the options that the reference has, too.
func playOptions(flags *pflag.FlagSet, f *playFlags) {
	flags.Uint64VarP(&f.blocks, "max-blocks", "m", 0, "stop when `N` blocks were changed")
	flags.Uint64VarP(&f.size, "block-size", "b", 512, "what --max-blocks counts: blocks of so many `BYTES`")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print each change; with --json, to standard error")
}

func play(cmd *cobra.Command, args []string, f *playFlags) error {
	if f.size == 0 {
		return errors.New("--block-size is 0; want the length of a block in bytes, such as 512")
	}
	log, err := openLog(cmd, args)
	if err != nil {
		return err
	}
	defer log.Close()
	dev, err := openTarget(cmd.Context(), args[1])
	if err != nil {
		return err
	}
	if dev.Caps().ReadOnly {
		return errors.Join(fmt.Errorf("%s can only be read", args[1]), dev.Close())
	}
	out := cmd.OutOrStdout()
	cfg := trlog.PlayConfig{Blocks: f.blocks, BlockSize: f.size, Flush: f.flush, Force: f.force}
	if f.verbose {
		each := out
		if f.json { // which has standard output for itself
			each = cmd.ErrOrStderr()
		}
		cfg.Each = func(r *trlog.Record) {
			fmt.Fprintf(each, "at %d: %v of %d bytes at %d\n", r.At, r.Request.Command, r.Request.Length, r.Request.Offset)
		}
	}
	done, err := trlog.Play(cmd.Context(), dev, log, cfg)
	if f.cutShort != nil {
		err = f.cutShort(err)
	}
	if err = errors.Join(err, dev.Close()); err != nil && !errors.Is(err, trlog.ErrTruncated) {
		err = fmt.Errorf("%w; %d changes were made before", err, done.Changes)
	}
	if f.json {
		return errors.Join(err, json.NewEncoder(out).Encode(done))
	}
	fmt.Fprintf(out, "%d changes of %d bytes, %d blocks\n", done.Changes, done.Bytes, done.Blocks)
	for _, note := range []struct {
		n    uint64
		text string
	}{
		{done.Refused, "changes were passed over, which the server had refused"},
		{done.NotTrimmed, "trims were passed over, which the target cannot do"},
		{done.Missing, "records were missing, or no records"},
	} {
		if note.n > 0 {
			fmt.Fprintf(out, "%d %s\n", note.n, note.text)
		}
	}
	if done.Stopped {
		fmt.Fprintln(out, "stopped at the limit of --max-blocks")
	}
	return err
}

// openTarget opens an export, or an image.
func openTarget(ctx context.Context, name string) (*block.Device, error) {
	var b block.Backend
	var err error
	if strings.Contains(name, "://") {
		b, err = client.Dial(ctx, name, &client.Config{Oldstyle: true})
	} else {
		b, err = file.Open(file.Config{Path: name})
	}
	if err != nil {
		return nil, err
	}
	dev, err := block.New(b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return dev, nil
}
