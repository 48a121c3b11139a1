package nbdconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/opener"
)

// sample returns a value for a key that is not its default.
func sample(k Key, dir string) string {
	switch {
	case k.Name == "includedir":
		return dir
	case k.Name == "virtstyle":
		return "iphash"
	}
	return [...]string{String: "text", Bool: "true", Int: "7", Size: "4096", List: "a, b"}[k.Kind]
}

// TestAllKeys gives each key alone a value in a file, and wants it to arrive in a
// field of its own, and in the dump.
func TestAllKeys(t *testing.T) {
	dir := filepath.ToSlash(t.TempDir()) // a backslash begins an escape
	for _, generic := range []bool{true, false} {
		for _, k := range Keys(generic) {
			if k.field == nil {
				continue
			}
			want := sample(k, dir)
			head, tail := "[generic]\n"+k.Name+" = "+want+"\n", "[e]\nexportname = /disk\n"
			if !generic {
				head = "[generic]\n"
				tail += k.Name + " = " + want + "\n" // exportname: the later one holds
			}
			name := filepath.Join(dir, "config")
			if err := os.WriteFile(name, []byte(head+tail), 0o600); err != nil {
				t.Fatal(err)
			}
			c, problems, err := Load(opener.OS{}, name)
			if err != nil || len(c.Exports) != 1 || len(problems.Errors(Unknown)) > 0 && strings.Contains(problems.Error(), "unknown key") {
				t.Errorf("%s: %v, %v", k.Name, problems, err)
				continue
			}
			checkOnly(t, c, k, generic, want)
		}
	}
}

// implied are the keys that are set by another one, too.
var implied = map[string]string{"keyfile": "certfile"}

// checkOnly wants the value of one key, and no other, in a configuration.
func checkOnly(t *testing.T, c *Config, only Key, generic bool, want string) {
	t.Helper()
	for _, in := range []bool{true, false} {
		for _, k := range Keys(in) {
			if k.field == nil {
				continue
			}
			got, set := text(k.field(&c.Generic, c.Exports[0]))
			switch is := k.Name == only.Name && in == generic; {
			case is && got != want:
				t.Errorf("%s = %s has arrived as %q", k.Name, want, got)
			case !is && set && (in || k.Name != "exportname") && implied[only.Name] != k.Name:
				t.Errorf("%s = %s has set %s to %q, too", only.Name, want, k.Name, got)
			}
		}
	}
	var b strings.Builder
	if err := c.WriteKeyFile(&b); err != nil {
		t.Fatal(err)
	}
	if line := "\t" + only.Name + " = " + want + "\n"; only.Name != "includedir" && !strings.Contains(b.String(), line) {
		t.Errorf("the dump lacks %q:\n%s", line, b.String())
	}
}
