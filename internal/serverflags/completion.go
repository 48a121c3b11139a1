package serverflags

import (
	"fmt"
	"io"
	"strings"

	"nbd.example/nbd/internal/completion"
)

// WriteCompletion writes the completions for a shell.
func WriteCompletion(w io.Writer, shell string) error {
	return completion.Scripts{Bash: bash, Zsh: zsh, Fish: fish}.Write(w, shell)
}

// optional tells whether the argument may be left out.
func (o Option) optional() bool { return strings.HasPrefix(o.Arg, "[") }

// file tells whether the argument is the path of a file.
func (o Option) file() bool { return o.Arg == "FILE" || o.Arg == "PATH" }

// dashed returns all ways to write the option's name.
func (o Option) dashed() []string {
	list := []string{"--" + o.Long, "-" + o.Long}
	if o.Short != 0 {
		list = append(list, "-"+string(o.Short))
	}
	if o.Also != "" {
		list = append(list, "--"+o.Also, "-"+o.Also)
	}
	return list
}

// bash writes a function for bash's complete. Bash makes a word of each =.
func bash(b *strings.Builder) {
	b.WriteString(`# Completions of nbd-server for bash, made by nbd-server --completion bash.
_nbd_server() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} equals=
	COMPREPLY=()
	if [[ $cur == = ]]; then cur= equals=1; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]} equals=1; fi
	case $prev in
`)
	var long []string
	for _, o := range options {
		long = append(long, "--"+o.Long)
		if o.Arg == "" {
			continue
		}
		names, with := strings.Join(o.dashed(), "|"), ""
		if o.optional() { // only behind an = it is an argument
			with = "[[ $equals ]] && "
		}
		switch {
		case o.file():
			fmt.Fprintf(b, "\t%s) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n", names)
		case o.words != nil:
			fmt.Fprintf(b, "\t%s) %sCOMPREPLY=($(compgen -W '%s' -- \"$cur\")) && return ;;\n", names, with, strings.Join(o.words, " "))
		default:
			fmt.Fprintf(b, "\t%s) return ;;\n", names)
		}
	}
	fmt.Fprintf(b, "\tesac\n\tif [[ $cur == -* ]]; then COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return; fi\n", strings.Join(long, " "))
	b.WriteString("\tCOMPREPLY=($(compgen -f -- \"$cur\"))\n}\ncomplete -o filenames -F _nbd_server nbd-server\n")
}

// zsh writes a function for zsh's completion system.
func zsh(b *strings.Builder) {
	b.WriteString("#compdef nbd-server\n# Completions of nbd-server for zsh, made by nbd-server --completion zsh.\n_arguments \\\n")
	for _, o := range options {
		name, action := strings.ToLower(strings.Trim(o.Arg, "[]")), ""
		switch {
		case o.Arg == "":
		case o.file():
			action = ":" + name + ":_files"
		case o.words != nil:
			action = ":" + name + ":(" + strings.Join(o.words, " ") + ")"
		default:
			action = ":" + name + ":"
		}
		form := "--" + o.Long
		switch {
		case o.optional():
			form, action = form+"=-", ":"+action
		case o.Arg != "":
			form += "="
		}
		help := completion.ZshText(o.Help)
		fmt.Fprintf(b, "\t'*%s[%s]%s' \\\n", form, help, action)
		if o.Short != 0 {
			fmt.Fprintf(b, "\t'*-%c[%s]%s' \\\n", o.Short, help, action)
		}
	}
	b.WriteString("\t'1:address and port:' '2:file:_files' '3:size:'\n")
}

// fish writes calls of fish's complete.
func fish(b *strings.Builder) {
	b.WriteString("# Completions of nbd-server for fish, made by nbd-server --completion fish.\n")
	for _, o := range options {
		line := "complete -c nbd-server -l " + o.Long
		if o.Short != 0 {
			line += " -s " + string(o.Short)
		}
		switch {
		case o.Arg == "":
		case o.file():
			line += " -r -F"
		case o.words != nil && o.optional():
			line += " -f -a '" + strings.Join(o.words, " ") + "'"
		case o.words != nil:
			line += " -x -a '" + strings.Join(o.words, " ") + "'"
		default:
			line += " -x"
		}
		fmt.Fprintf(b, "%s -d '%s'\n", line, completion.FishText(o.Help))
	}
}
