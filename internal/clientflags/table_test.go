package clientflags

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// TestHelp compares the help text with the one that was looked at.
func TestHelp(t *testing.T) {
	var b strings.Builder
	if err := WriteHelp(&b); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "help.golden")
	if *rewrite {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if strings.ReplaceAll(string(want), "\r\n", "\n") != b.String() {
		t.Errorf("--help is not what %s has; look at it, and run the test with -rewrite:\n%s", golden, b.String())
	}
}

// TestTable: every option of the reference is there, names are unique, and what the
// table says of itself agrees.
func TestTable(t *testing.T) {
	// The options of releases 3.24 and 3.27.
	reference := map[string]string{
		"b": "block-size", "B": "size", "C": "connections", "t": "timeout", "T": "dead-timeout", "p": "persist", "P": "preinit",
		"R": "readonly", "s": "swap", "S": "sdp", "m": "systemd-mark", "n": "nofork", "L": "nonetlink", "i": "identifier",
		"g": "no-optgo", "u": "unix", "l": "list", "c": "check", "d": "disconnect", "x": "enable-tls", "F": "certfile",
		"K": "keyfile", "A": "cacertfile", "H": "tlshostname", "y": "priority", "V": "version", "h": "help", "N": "name",
	}
	seen := map[string]bool{}
	for _, o := range options {
		names := []string{"--" + o.Long}
		if o.Short != 0 {
			names = append(names, "-"+string(o.Short))
			if long := reference[string(o.Short)]; long != o.Long || !o.Old {
				t.Errorf("-%c is -%s, the reference has -%s; old: %t", o.Short, o.Long, long, o.Old)
			}
			delete(reference, string(o.Short))
		}
		for _, n := range names {
			if seen[n] {
				t.Errorf("%s is there twice", n)
			}
			seen[n] = true
		}
		if o.set == nil || o.Help == "" || o.Long == "" {
			t.Errorf("%s lacks something", o.Forms())
		}
		for _, text := range []string{o.Help, o.More} {
			if strings.HasSuffix(text, ".") != (text == o.More && text != "") {
				t.Errorf("%s: the help has no stop at its end, what the manual adds has one: %q", o.Forms(), text)
			}
		}
		if o.Words != nil && o.Arg == "" {
			t.Errorf("%s: words without an argument", o.Forms())
		}
	}
	for short, long := range reference {
		t.Errorf("the table lacks the reference's -%s, -%s", short, long)
	}
	keys := map[string]bool{}
	for _, o := range TabOptions() {
		if keys[o.Tab] {
			t.Errorf("the key %s is there twice", o.Tab)
		}
		keys[o.Tab] = true
	}
	// The keys of the reference's nbdtab.
	for _, k := range strings.Fields("bs cacertfile certfile conns keyfile no_optgo port timeout dead-timeout persist swap sdp tlshostname unix preinit tls priority") {
		if !keys[k] {
			t.Errorf("nbdtab lacks the reference's key %s", k)
		}
	}
}

// TestFormsParse: every form that the help shows is understood.
func TestFormsParse(t *testing.T) {
	values := map[string]string{
		"NAME": "n", "HOST[:PORT]": "h", "CHAIN": "null:1M", "BYTES": "4096", "N": "2", "TEXT": "NORMAL", "TIME": "5",
		"WHAT": "error", "FILE": "/f", "DIR": "/d", "LEVEL": "warn", "FORMAT": "json", "DEVICE": "nbd0", "SHELL": "fish",
	}
	for _, o := range options {
		for _, form := range o.forms() {
			args := []string{form}
			if o.Arg != "" {
				args = append(args, values[o.Arg])
			}
			command := ""
			if !o.Takes(Attach) {
				command, _, _ = strings.Cut(o.Of, ",")
				args = append([]string{command}, args...)
			}
			_, err := Parse(args)
			for _, text := range []string{"unknown", "could be", "needs its argument", "takes no argument", "is for the command", "is not for"} {
				if err != nil && strings.Contains(err.Error(), text) {
					t.Errorf("%q: %v", args, err)
				}
			}
		}
	}
}

// TestCompletion lets the shells read what is made for them, and asks bash.
func TestCompletion(t *testing.T) {
	for _, shell := range shells {
		var b strings.Builder
		if err := WriteCompletion(&b, shell); err != nil {
			t.Fatal(err)
		}
		for _, o := range options {
			// fish writes dashes apart from names.
			if has := strings.Contains(b.String(), o.Long); has == (o.Hidden && o.Long != "netlink") {
				t.Errorf("%s: -%s is there: %t", shell, o.Long, has)
			}
		}
		for _, c := range commands {
			if !strings.Contains(b.String(), string(c.Name)) {
				t.Errorf("%s: no command %s", shell, c.Name)
			}
		}
	}
	if err := WriteCompletion(&strings.Builder{}, "tcsh"); err == nil {
		t.Error("completions for a shell that nobody knows")
	}
}

func TestBash(t *testing.T) {
	testgate.Requires(t, testgate.Program("bash"))
	var script strings.Builder
	if err := WriteCompletion(&script, "bash"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line string // its last word is completed
		want string // one of the answers
		not  string
	}{
		{"nbd-client -bl", "-block-size", "-name"},
		{"nbd-client li", "list", "-list"},
		{"nbd-client list --js", "--json", "-name"},
		{"nbd-client --on-failure er", "error", "wait"},
		{"nbd-client --log-level w", "warn", "error"},
		{"nbd-client wait x go", "gone", "ready"},
		{"nbd-client host au", "auto", "list"},
		{"nbd-client -N ", "", "list"},
	} {
		words := strings.Split(c.line, " ")
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, "'"+w+"'")
		}
		text := script.String() + "\nCOMP_WORDS=(" + strings.Join(quoted, " ") + ")\nCOMP_CWORD=$((${#COMP_WORDS[@]}-1))\n_nbd_client\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
		cmd := exec.Command("bash", "--norc", "-s")
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", c.line, err, out)
		}
		lines := "\n" + string(out)
		if c.want != "" && !strings.Contains(lines, "\n"+c.want+"\n") || strings.Contains(lines, "\n"+c.not+"\n") {
			t.Errorf("%s: %q", c.line, out)
		}
	}
}
