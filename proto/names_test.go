package proto

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// named lists, for each type with names, a function from a number to its text.
var named = map[string]func(uint64) string{
	"Option":            func(v uint64) string { return Option(v).String() },
	"OptionReply":       func(v uint64) string { return OptionReply(v).String() },
	"Info":              func(v uint64) string { return Info(v).String() },
	"Command":           func(v uint64) string { return Command(v).String() },
	"ChunkType":         func(v uint64) string { return ChunkType(v).String() },
	"Errno":             func(v uint64) string { return Errno(v).String() },
	"HandshakeFlags":    func(v uint64) string { return HandshakeFlags(v).String() },
	"ClientFlags":       func(v uint64) string { return ClientFlags(v).String() },
	"TransmissionFlags": func(v uint64) string { return TransmissionFlags(v).String() },
	"CommandFlags":      func(v uint64) string { return CommandFlags(v).String() },
	"ReplyFlags":        func(v uint64) string { return ReplyFlags(v).String() },
	"State":             func(v uint64) string { return State(v).String() },
}

// prefixes are what the constants of a type begin with in Go and in the specification.
var prefixes = map[string][2]string{
	"Option": {"Opt", "NBD_OPT_"}, "OptionReply": {"Rep", "NBD_REP_"}, "Info": {"Info", "NBD_INFO_"}, "Command": {"Cmd", "NBD_CMD_"},
	"ChunkType": {"Chunk", "NBD_REPLY_TYPE_"}, "Errno": {"E", "NBD_E"}, "HandshakeFlags": {"Flag", "NBD_FLAG_"},
	"ClientFlags": {"Client", "NBD_FLAG_C_"}, "TransmissionFlags": {"Flag", "NBD_FLAG_"}, "CommandFlags": {"CmdFlag", "NBD_CMD_FLAG_"},
	"ReplyFlags": {"ReplyFlag", "NBD_REPLY_FLAG_"}, "State": {"State", "NBD_STATE_"},
}

// TestEveryConstantHasItsName reads this package's source: the text of each
// constant must be its name as the specification spells it.
func TestEveryConstantHasItsName(t *testing.T) {
	values := constants(t)
	if len(values) < 70 {
		t.Fatalf("only %d constants found", len(values))
	}
	squeeze := func(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "_", "")) }
	exceptions := map[string]string{"OK": "OK", "RepError": "", "ChunkError": "", "ChunkErrorPlain": "NBD_REPLY_TYPE_ERROR"}
	seen := map[string]bool{}
	for _, c := range values {
		seen[c.typ] = true
		text := named[c.typ](c.value)
		if want, special := exceptions[c.name]; special {
			if want != "" && text != want {
				t.Errorf("%s is called %s, want %s", c.name, text, want)
			}
			continue
		}
		p := prefixes[c.typ]
		if want := squeeze(p[1] + strings.TrimPrefix(c.name, p[0])); squeeze(text) != want || strings.ContainsAny(text, "(x") {
			t.Errorf("%s (%s %#x) is called %s", c.name, c.typ, c.value, text)
		}
	}
	for typ := range named {
		if !seen[typ] {
			t.Errorf("no constant of type %s found", typ)
		}
	}
}

type constant struct {
	typ, name string
	value     uint64
}

// constants finds the constants of the types in named, with the values that
// the source gives them.
func constants(t *testing.T) (out []constant) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]uint64{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				typ, ok := v.Type.(*ast.Ident)
				if !ok || named[typ.Name] == nil {
					continue
				}
				n := evaluate(t, v.Values[0], known)
				known[v.Names[0].Name] = n
				out = append(out, constant{typ.Name, v.Names[0].Name, n})
			}
		}
	}
	return out
}

func evaluate(t *testing.T, e ast.Expr, known map[string]uint64) uint64 {
	t.Helper()
	switch e := e.(type) {
	case *ast.BasicLit:
		var n uint64
		for _, c := range e.Value {
			n = n*10 + uint64(c-'0')
		}
		return n
	case *ast.Ident:
		n, ok := known[e.Name]
		if !ok {
			t.Fatalf("%s is not known yet", e.Name)
		}
		return n
	case *ast.BinaryExpr:
		x, y := evaluate(t, e.X, known), evaluate(t, e.Y, known)
		switch e.Op {
		case token.SHL:
			return x << y
		case token.ADD:
			return x + y
		}
	}
	t.Fatalf("cannot evaluate %T", e)
	return 0
}

// TestUnknownNumbersHaveATextToo has numbers without a name.
func TestUnknownNumbersHaveATextToo(t *testing.T) {
	for _, tt := range []struct {
		v    any
		want string
	}{
		{Option(99), "NBD_OPT(0x63)"}, {OptionReply(1<<31 + 77), "NBD_REP(0x8000004d)"}, {Command(77), "NBD_CMD(0x4d)"},
		{ChunkType(77), "NBD_REPLY_TYPE(0x4d)"}, {Info(77), "NBD_INFO(0x4d)"}, {Errno(7), "NBD_E(7)"},
		{TransmissionFlags(1<<15 | 1), "NBD_FLAG_HAS_FLAGS|0x8000"}, {CommandFlags(0), "0"}, {ClientFlags(3), "NBD_FLAG_C_FIXED_NEWSTYLE|NBD_FLAG_C_NO_ZEROES"},
	} {
		if got := tt.v.(interface{ String() string }).String(); got != tt.want {
			t.Errorf("%T: %s, want %s", tt.v, got, tt.want)
		}
	}
	if got := EIO.Error(); got != "NBD_EIO" {
		t.Error(got)
	}
}

func TestErrorBits(t *testing.T) {
	if RepAck.IsError() || !RepErrUnsup.IsError() || ChunkOffsetData.IsError() || !(ChunkError + 99).IsError() {
		t.Error("IsError is wrong")
	}
}
