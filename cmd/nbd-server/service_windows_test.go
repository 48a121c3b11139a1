package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseService(t *testing.T) {
	for _, x := range []struct {
		text string
		want serviceCommand
		err  string
	}{
		{"start", serviceCommand{verb: "start", name: "nbd-server"}, ""},
		{"stop --name two", serviceCommand{verb: "stop", name: "two"}, ""},
		{"status --name=two", serviceCommand{verb: "status", name: "two"}, ""},
		{"install -C c.conf", serviceCommand{verb: "install", name: "nbd-server", args: []string{"-C", "c.conf"}}, ""},
		{`install --manual --account NT_SERVICE\x --name x -- 10809 d.img -r`, serviceCommand{
			verb: "install", name: "x", manual: true, account: `NT_SERVICE\x`, args: []string{"10809", "d.img", "-r"}}, ""},
		{`run --name x --dir C:\d -- 10809 d.img`, serviceCommand{verb: "run", name: "x", dir: `C:\d`, args: []string{"10809", "d.img"}}, ""},
		{"", serviceCommand{}, "the command is missing"},
		{"restart", serviceCommand{}, `unknown command "restart"`},
		{"start now", serviceCommand{}, `start: unknown argument "now"`},
		{"stop --manual", serviceCommand{}, `stop: unknown argument "--manual"`},
		{"stop --name", serviceCommand{}, "option --name needs its argument"},
		{"start --name=", serviceCommand{}, "cannot be the name of a service"},
		{`start --name a\b`, serviceCommand{}, "cannot be the name of a service"},
		{"install 0 d.img", serviceCommand{}, "no client on standard input"},
		{"install --check-config", serviceCommand{}, "a service serves"},
		{"install --no-such-option", serviceCommand{}, "unknown option"},
	} {
		got, err := parseService(strings.Fields(x.text))
		switch {
		case x.err != "":
			if err == nil || !strings.Contains(err.Error(), x.err) {
				t.Errorf("%s: error %v, want %q", x.text, err, x.err)
			}
		case err != nil:
			t.Errorf("%s: %v", x.text, err)
		case !reflect.DeepEqual(*got, x.want):
			t.Errorf("%s: %+v, want %+v", x.text, *got, x.want)
		}
	}
}

func TestAsService(t *testing.T) {
	for _, args := range [][]string{nil, {"10809", "d.img"}, {"-C", "service"}} {
		if _, done := asService(args); done {
			t.Errorf("%q was taken for a command of the service", args)
		}
	}
}
