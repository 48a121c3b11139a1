// Package completion is what the completions of several programs have in common.
package completion

import (
	"fmt"
	"io"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// Scripts write a program's completions, for each shell that there are some for.
type Scripts struct{ Bash, Zsh, Fish func(*strings.Builder) }

// Write writes those for a shell.
func (s Scripts) Write(w io.Writer, shell string) error {
	write, known := map[string]func(*strings.Builder){"bash": s.Bash, "zsh": s.Zsh, "fish": s.Fish}[shell]
	if !known {
		return fmt.Errorf("no completions for the shell %s", typo.Quote(shell))
	}
	var b strings.Builder
	write(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

var (
	zsh  = strings.NewReplacer("'", "'\\''", "[", "\\[", "]", "\\]", ":", "\\:")
	fish = strings.NewReplacer(`\`, `\\`, "'", `\'`)
)

// ZshText quotes the help of an option for a specification of zsh between single quotes.
func ZshText(s string) string { return zsh.Replace(s) }

// FishText quotes a text for fish between single quotes.
func FishText(s string) string { return fish.Replace(s) }
