package main

import (
	"strings"
)

// roff builds a page in the language of man(7).
type roff struct{ strings.Builder }

// escape makes text safe: nothing in it is a command.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "^", `\(ha`, "~", `\(ti`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// line writes a command with its arguments.
func (r *roff) line(command string, args ...string) {
	r.WriteString("." + command)
	for _, a := range args {
		r.WriteString(` "` + strings.ReplaceAll(escape(a), `"`, `\(dq`) + `"`)
	}
	r.WriteByte('\n')
}

// text writes paragraphs, separated by empty lines. Between stars, text is bold.
func (r *roff) text(s string) {
	for i, p := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if i > 0 {
			r.line("PP")
		}
		r.paragraph(p)
	}
}

func (r *roff) paragraph(p string) {
	p = escape(strings.Join(strings.Fields(p), " "))
	for i, part := range strings.Split(p, "*") {
		if i%2 == 1 {
			part = `\fB` + part + `\fR`
		}
		r.WriteString(part)
	}
	r.WriteByte('\n')
}

// item writes a term and what it means.
func (r *roff) item(term, text string) {
	r.WriteString(".TP\n\\fB" + escape(term) + "\\fR\n")
	for i, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			r.line("IP")
		}
		// Stars are stars here: the texts come from tables.
		r.WriteString(escape(strings.Join(strings.Fields(p), " ")) + "\n")
	}
}

// example writes lines as they are.
func (r *roff) example(s string) {
	r.WriteString(".PP\n.RS 4\n.nf\n" + escape(strings.Trim(s, "\n")) + "\n.fi\n.RE\n")
}
