package serverflags

import (
	"os/exec"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
)

// scriptFor returns the script for a shell.
func scriptFor(t *testing.T, shell string) string {
	t.Helper()
	var b strings.Builder
	if err := WriteCompletion(&b, shell); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := scriptFor(t, shell)
		for _, o := range options {
			if !strings.Contains(script, o.Long) {
				t.Errorf("%s: no option %s", shell, o.Long)
			}
		}
	}
	if err := WriteCompletion(&strings.Builder{}, "tcsh"); err == nil {
		t.Error("completions for a shell that nobody knows")
	}
}

// TestShells lets those shells that are there read their scripts.
func TestShells(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			testgate.Requires(t, testgate.Program(shell))
			cmd := exec.Command(shell, "-n")
			cmd.Stdin = strings.NewReader(scriptFor(t, shell))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestBash asks bash for completions of the last word of a line.
func TestBash(t *testing.T) {
	testgate.Requires(t, testgate.Program("bash"))
	for _, c := range []struct {
		line string
		want string // one of the answers; "" for none at all
	}{
		{"nbd-server --che", "--check-config"},
		{"nbd-server --log-format = j", "json"},
		{"nbd-server --log-level w", "warn"},
		{"nbd-server --dump-config = j", "json"},
		{"nbd-server --dump-config --chec", "--check-config"},
		{"nbd-server --completion f", "fish"},
		{"nbd-server -C completion_t", "completion_test.go"},
		{"nbd-server 10809 completion_t", "completion_test.go"},
		{"nbd-server -M ", ""},
	} {
		words := "'" + strings.Join(strings.Split(c.line, " "), "' '") + "'"
		cmd := exec.Command("bash", "--norc", "-s")
		cmd.Stdin = strings.NewReader(scriptFor(t, "bash") + "\nCOMP_WORDS=(" + words + ")\nCOMP_CWORD=$((${#COMP_WORDS[@]}-1))\n_nbd_server\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", c.line, err, out)
		}
		if !strings.Contains("\n"+string(out), "\n"+c.want+"\n") {
			t.Errorf("%s: %q, want %q", c.line, out, c.want)
		}
	}
}
