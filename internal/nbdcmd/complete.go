package nbdcmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/internal/nbdconf"
)

// lookUp asks the server for what completes a word. What it does not know, or not soon, is
// not completed.
func (x *ctl) lookUp(cmd *cobra.Command, op control.Op, list any) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := x.dial(ctx)
	if err != nil {
		return
	}
	defer c.Close()
	c.Do(ctx, control.Request{Op: op}, list)
}

// completeNames completes the first argument with the names of exports.
func (x *ctl) completeNames(cmd *cobra.Command, args []string, _ string) (words []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 {
		var list []control.Export
		x.lookUp(cmd, control.OpList, &list)
		for _, one := range list {
			words = append(words, one.Name+"\t"+one.State)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeIDs completes with the numbers of connections.
func (x *ctl) completeIDs(cmd *cobra.Command, args []string, _ string) (words []string, _ cobra.ShellCompDirective) {
	var list []control.Connection
	x.lookUp(cmd, control.OpConnections, &list)
	for _, one := range list {
		if id := fmt.Sprint(one.ID); !slices.Contains(args, id) {
			words = append(words, fmt.Sprintf("%s\t%s %s", id, one.Client, one.Export))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeChange completes with the name of an export, and keys behind it.
func (x *ctl) completeChange(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return x.completeNames(cmd, args, word)
	}
	return completeKeys(args[1:], word)
}

// completeAdd completes with keys behind the name of an export that is yet to be.
func completeAdd(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeKeys(args[1:], word)
}

// completeKeys completes KEY=VALUE: with the keys that were not given yet, or with values.
func completeKeys(given []string, word string) (words []string, _ cobra.ShellCompDirective) {
	key, value, named := strings.Cut(word, "=")
	for _, k := range nbdconf.Keys(false) {
		switch {
		case k.Status != nbdconf.Supported:
		case named && k.Name == key:
			return completeValue(k, value)
		case !named && strings.HasPrefix(k.Name, key) && !slices.ContainsFunc(given, func(g string) bool { return strings.HasPrefix(g, k.Name+"=") }):
			first, _, _ := strings.Cut(k.Help, ". ")
			words = append(words, k.Name+"=\t"+strings.ReplaceAll(first, "\n", " "))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeValue completes what stands behind a key and its =, which a shell would take for
// a part of the file's name.
func completeValue(k nbdconf.Key, value string) (words []string, _ cobra.ShellCompDirective) {
	switch {
	case k.Kind == nbdconf.Bool:
		return []string{k.Name + "=true", k.Name + "=false"}, cobra.ShellCompDirectiveNoFileComp
	case k.Kind != nbdconf.String || !filepath.IsAbs(value):
		return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	dir, begun := filepath.Split(value)
	entries, _ := os.ReadDir(dir)
	end := cobra.ShellCompDirectiveNoFileComp
	for _, e := range entries {
		path := dir + e.Name()
		if !strings.HasPrefix(e.Name(), begun) {
			continue
		}
		if e.IsDir() {
			path, end = path+string(filepath.Separator), end|cobra.ShellCompDirectiveNoSpace
		}
		words = append(words, k.Name+"="+path)
	}
	return words, end
}
