package clientflags

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

// spelling returns the long form as the option is written, with its dashes.
func (o Option) spelling() string {
	switch {
	case o.Long == "":
		return "-" + string(o.Short)
	case o.Old:
		return "-" + o.Long
	}
	return "--" + o.Long
}

// kind says what completes the argument: "", "file", "dir", "device", "words" or
// "other".
func (o Option) kind() string {
	switch {
	case o.Arg == "":
		return ""
	case o.Words != nil:
		return "words"
	case o.Arg == "FILE", o.Arg == "CHAIN":
		return "file"
	case o.Arg == "DIR":
		return "dir"
	case o.Arg == "DEVICE":
		return "device"
	}
	return "other"
}

// forms returns all ways to write the option's name, with dashes.
func (o Option) forms() (list []string) {
	if o.Short != 0 {
		list = append(list, "-"+string(o.Short))
	}
	if o.Long != "" {
		list = append(list, "-"+o.Long, "--"+o.Long)
	}
	return list
}

// visible returns the options for an action that people write.
func visible(a Action) (list []Option) {
	for _, o := range options {
		if !o.Hidden && o.Takes(a) {
			list = append(list, o)
		}
	}
	return list
}

// spellings joins the long forms for an action.
func spellings(a Action) string {
	var list []string
	for _, o := range visible(a) {
		list = append(list, o.spelling())
	}
	return strings.Join(list, " ")
}

func commandNames() string {
	var list []string
	for _, c := range commands {
		list = append(list, string(c.Name))
	}
	return strings.Join(list, " ")
}

// devicePattern is what the names of kernel devices look like to a shell.
const devicePattern = "/dev/nbd[0-9]*"

// bash writes a function for bash's complete.
func bash(b *strings.Builder) {
	b.WriteString(`# Completions of nbd-client for bash, made by nbd-client --completion bash.
_nbd_client() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words=
	COMPREPLY=()
	if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
	case $prev in
`)
	for _, o := range options {
		if o.Hidden {
			continue
		}
		names := strings.Join(o.forms(), "|")
		switch o.kind() {
		case "file":
			fmt.Fprintf(b, "\t%s) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n", names)
		case "dir":
			fmt.Fprintf(b, "\t%s) COMPREPLY=($(compgen -d -- \"$cur\")); return ;;\n", names)
		case "device":
			fmt.Fprintf(b, "\t%s) COMPREPLY=($(compgen -G '%s' | compgen -W \"$(cat)\" -- \"$cur\")); return ;;\n", names, devicePattern)
		case "words":
			fmt.Fprintf(b, "\t%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;;\n", names, strings.Join(o.Words, " "))
		case "other":
			fmt.Fprintf(b, "\t%s) return ;;\n", names)
		}
	}
	fmt.Fprintf(b, "\tesac\n\tcase $command in\n")
	for _, c := range commands {
		operands := ""
		if c.Operands != "" {
			operands = " $(compgen -G '" + devicePattern + "')"
		}
		if c.Name == Wait {
			operands += " ready gone"
		}
		fmt.Fprintf(b, "\t%s) words=\"%s%s\" ;;\n", c.Name, spellings(c.Name), operands)
	}
	fmt.Fprintf(b, "\t*) words=\"%s $(compgen -G '%s') auto\" ;;\n\tesac\n", spellings(Attach), devicePattern)
	fmt.Fprintf(b, "\t[[ $COMP_CWORD == 1 ]] && words=\"%s %s $(compgen -G '%s')\"\n", spellings(Attach), commandNames(), devicePattern)
	b.WriteString("\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -F _nbd_client nbd-client\n")
}

// zsh writes a function for zsh's completion system.
func zsh(b *strings.Builder) {
	b.WriteString(`#compdef nbd-client
# Completions of nbd-client for zsh, made by nbd-client --completion zsh.
_nbd_client() {
	local -a devices=(` + devicePattern + `(N))
	case $words[2] in
`)
	specs := func(a Action) {
		for _, o := range visible(a) {
			action := map[string]string{
				"": "", "file": ":file:_files", "dir": ":folder:_files -/", "device": ":device:($devices)",
				"words": ":" + strings.ToLower(o.Arg) + ":(" + strings.Join(o.Words, " ") + ")", "other": ":" + strings.ToLower(o.Arg) + ":",
			}[o.kind()]
			name := o.spelling()
			if o.Long == "" {
				name = "-" + string(o.Short)
			}
			fmt.Fprintf(b, "\t\t\t'*%s[%s]%s' \\\n", name, completion.ZshText(o.Help), strings.ReplaceAll(action, "[:PORT]", ""))
		}
	}
	for _, c := range commands {
		fmt.Fprintf(b, "\t%s) _arguments \\\n\t\t\t'1:command:(%s)' \\\n", c.Name, commandNames())
		specs(c.Name)
		switch {
		case c.Name == Wait:
			b.WriteString("\t\t\t'2:device:($devices)' '3:until:(ready gone)' ;;\n")
		case c.Operands != "":
			b.WriteString("\t\t\t'*:device:($devices)' ;;\n")
		default:
			b.WriteString("\t\t\t&& return ;;\n")
		}
	}
	b.WriteString("\t*) _arguments \\\n")
	specs(Attach)
	fmt.Fprintf(b, "\t\t\t'1:host or command:(%s $devices)' '*:device:($devices auto)' ;;\n\tesac\n}\n_nbd_client \"$@\"\n", commandNames())
}

// fish writes calls of fish's complete.
func fish(b *strings.Builder) {
	b.WriteString("# Completions of nbd-client for fish, made by nbd-client --completion fish.\ncomplete -c nbd-client -f\n")
	for _, c := range commands {
		fmt.Fprintf(b, "complete -c nbd-client -n __fish_use_subcommand -a %s -d '%s'\n", c.Name, completion.FishText(c.Help))
		if c.Operands != "" {
			fmt.Fprintf(b, "complete -c nbd-client -n '__fish_seen_subcommand_from %s' -a '(printf %%s\\\\n %s)'\n", c.Name, devicePattern)
		}
	}
	fmt.Fprintf(b, "complete -c nbd-client -n '__fish_seen_subcommand_from %s' -a 'ready gone'\n", Wait)
	for _, o := range options {
		if o.Hidden {
			continue
		}
		line := "complete -c nbd-client"
		if !o.Takes(Attach) {
			line += " -n '__fish_seen_subcommand_from " + strings.ReplaceAll(o.Of, ",", " ") + "'"
		}
		if o.Short != 0 {
			line += " -s " + string(o.Short)
		}
		switch {
		case o.Old && o.Long != "":
			line += " -o " + o.Long
		case o.Long != "":
			line += " -l " + o.Long
		}
		switch o.kind() {
		case "file":
			line += " -r -F"
		case "dir":
			line += " -x -a '(__fish_complete_directories)'"
		case "device":
			line += ` -x -a '(printf %s\\n ` + devicePattern + ")'"
		case "words":
			line += " -x -a '" + strings.Join(o.Words, " ") + "'"
		case "other":
			line += " -x"
		}
		fmt.Fprintf(b, "%s -d '%s'\n", line, completion.FishText(o.Help))
	}
}
