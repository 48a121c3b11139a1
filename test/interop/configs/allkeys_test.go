package configs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAllKeys fails if there is a key whose effect no test shows, or if the test that is said
// to show it is not there, or does not set it: the test itself or a function that it uses.
// Most of them use clients of others.
func TestAllKeys(t *testing.T) {
	shown, folders := map[string]string{}, map[string]sources{}
	for test, keys := range map[string]string{
		"test/interop TestNbdinfo":                   "exportname readonly flush fua trim rotational description",
		"test/interop TestNbdinfoList":               "allowlist",
		"test/interop TestTLS":                       "certfile keyfile cacertfile",
		"test/interop TestTLSMixed":                  "force_tls",
		"test/interop TestTLSPriority":               "tlsprio",
		"test/interop TestTransactionLog":            "transactionlog datalog",
		"test/interop/configs TestKeysByOthers":      "copyonwrite temporary filesize multifile treefiles maxconnections authfile",
		"test/interop/configs TestDiffs":             "cowdir sparse_cow",
		"test/interop/configs TestIncludeDir":        "includedir",
		"test/interop/configs TestSync":              "sync",
		"test/interop/configs TestMaxThreads":        "max_threads",
		"test/interop/configs TestVirtStyle":         "virtstyle",
		"test/interop/configs TestCommands":          "prerun postrun",
		"test/interop/configs TestCommandLimits":     "prerun_timeout postrun_timeout",
		"test/interop/configs TestRunUser":           "run_user",
		"test/interop/configs TestTimeout":           "timeout",
		"test/interop/configs TestOldstyleClients":   "oldstyle",
		"test/interop/configs TestWaitFile":          "waitfile",
		"test/interop/configs TestMinBlock":          "minblock",
		"test/interop/configs TestListeners":         "listen",
		"test/interop/configs TestTLSOnly":           "tlsonly",
		"test/interop/configs TestKeysWithoutEffect": "splice sdp",
		"test/interop/configs TestListenAddr":        "listenaddr port",
		"test/interop/configs TestLimits":            "maxconnections_client handshake_timeout stuck_timeout maxpayload",
		"cmd/nbd-server TestLimits":                  "maxmemory maxrequests maxconnections_total",
		"cmd/nbd-server TestUser":                    "user group",
		"cmd/nbd-server TestDualListen":              "unixsock duallisten",
		"cmd/nbd-server TestControlSocket":           "control",
		"test/vm/scenarios swapBeside":               "swap",
	} {
		dir, name, _ := strings.Cut(test, " ")
		if folders[dir] == nil {
			folders[dir] = parse(t, dir)
		}
		text := folders[dir].of(name)
		if text == "" {
			t.Errorf("there is no test %s in %s", name, dir)
		}
		if strings.Contains(text, "harness.ServerLines(") {
			text += parse(t, "test/harness").of("ServerLines")
		}
		for _, k := range strings.Fields(keys) {
			shown[k] = test
			if !regexp.MustCompile(`\b` + k + ` ?=`).MatchString(text) {
				t.Errorf("%s does not set the key %s", test, k)
			}
		}
	}
	for _, k := range keyNames() {
		if shown[k] == "" {
			t.Errorf("no test shows the effect of the key %s", k)
		}
	}
	for k, test := range shown {
		if !slices.Contains(keyNames(), k) {
			t.Errorf("%s is said to be shown by %s, but there is no such key", k, test)
		}
	}
}

// sources are the functions, and what else is declared, of a folder, by their names. Those of
// methods begin with a dot.
type sources map[string]string

// parse reads the Go files of a folder of the module.
func parse(t *testing.T, dir string) sources {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../../..", dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := sources{}
	for _, file := range files {
		text := string(read(t, file))
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, file, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tree.Decls {
			source := text[set.Position(d.Pos()).Offset:set.Position(d.End()).Offset]
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					name = "." + name // several types may have one
				}
				all[name] += source
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if v, ok := s.(*ast.ValueSpec); ok {
						for _, name := range v.Names {
							all[name.Name] += source
						}
					}
				}
			}
		}
	}
	return all
}

var words = regexp.MustCompile(`\.?\w+`)

// of returns the text of a function, and of what it uses of its folder.
func (all sources) of(name string) string {
	var said strings.Builder
	seen := map[string]bool{name: true}
	for list := []string{name}; len(list) > 0; list = list[1:] {
		said.WriteString(all[list[0]])
		for _, w := range words.FindAllString(all[list[0]], -1) {
			if all[w] != "" && !seen[w] {
				seen[w] = true
				list = append(list, w)
			}
		}
	}
	return strings.ReplaceAll(said.String(), `\n`, "\n")
}
