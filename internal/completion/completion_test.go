package completion

import (
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	say := func(text string) func(*strings.Builder) {
		return func(b *strings.Builder) { b.WriteString(text) }
	}
	s := Scripts{Bash: say("for bash"), Zsh: say("for zsh"), Fish: say("for fish")}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var b strings.Builder
		if err := s.Write(&b, shell); err != nil || b.String() != "for "+shell {
			t.Errorf("%s: %q, %v", shell, b.String(), err)
		}
	}
	if err := s.Write(&strings.Builder{}, "tcsh\n"); err == nil || !strings.Contains(err.Error(), `"tcsh\n"`) {
		t.Errorf("a shell that nobody knows: %v", err)
	}
}

func TestText(t *testing.T) {
	if got := ZshText("it's [a:b]"); got != `it'\''s \[a\:b\]` {
		t.Error(got)
	}
	if got := FishText(`it's \x`); got != `it\'s \\x` {
		t.Error(got)
	}
}
