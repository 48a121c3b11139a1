package archtest

import "strings"

// Module is the path of the module.
const Module = "nbd.example/nbd"

// A rule says what the packages under one path may import, besides the standard
// library and packages below their own path.
type rule struct {
	path  string   // relative to the module; the longest that is a prefix applies
	may   []string // paths of the module, with all below them; or of other modules
	noStd []string // packages of the standard library that it must do without
}

// anything stands for every package of the module and every module in go.mod.
const anything = "*"

// sys is the one module outside the standard library that packages which talk to
// the system need.
const sys = "golang.org/x/sys"

// netlink is where the packages for generic netlink are.
const netlink = "github.com/mdlayher"

// cobra is where the packages for command lines with commands are.
const cobra = "github.com/spf13"

// rules is the table of doc.go.
var rules = []rule{
	{path: "."},
	{path: "proto", noStd: []string{"net", "os", "crypto/tls"}},
	{path: "uri", may: []string{"internal"}},
	{path: "handshake", may: []string{"proto"}},
	{path: "block", may: []string{"internal", sys}, noStd: []string{"net"}},
	{path: "block/blocktest", may: []string{"block"}},
	{path: "transmission", may: []string{"proto", "block", "internal", sys}},
	{path: "client", may: []string{"handshake", "transmission", "proto", "uri", "block", "internal"}},
	{path: "server", may: []string{"handshake", "transmission", "proto", "block", "internal", sys, netlink}},
	{path: "backend", may: []string{"block", "internal", sys}},
	{path: "backend/remote", may: []string{"block", "client", "internal"}},
	{path: "layer", may: []string{"block", "internal/sparse"}},
	{path: "chain", may: []string{"block", "internal"}},
	{path: "chain/core", may: []string{"block", "chain", "backend", "layer"}},
	{path: "kernel", may: []string{"proto", "internal", sys, netlink}},
	{path: "supervise", may: []string{"kernel", "client", "handshake", "transmission", "proto", "uri", "internal", sys}},
	{path: "cmd", may: []string{anything}},
	{path: "internal/vsocket", may: []string{netlink}},
	{path: "internal/nbdcmd", may: []string{"client", "block", "backend/file", "internal", cobra}},
	{path: "internal/genman", may: []string{"internal", cobra}},
	{path: "internal/socket", may: []string{sys}},
	{path: "internal", may: []string{"proto", "block", sys}},
	{path: "test", may: []string{anything}},
}

// forTests is what a package's tests may import in addition: to test against the
// conformance suite, with real back ends and layers, and behind gates.
var forTests = []string{
	"block", "block/blocktest", "backend", "layer", "proto", "internal", sys,
}

// moreForTests adds to forTests for packages whose tests drive their other half.
var moreForTests = map[string][]string{
	".":            {"server", "client", "chain"},
	"handshake":    {"transmission"},
	"transmission": {"handshake", "client"},
	"client":       {"server", "chain"},
	"server":       {"client", "chain"},
	"supervise":    {"server", "chain"},
	"uri":          {},
	// The conformance suite for connections.
	"internal/socket": {"golang.org/x/net/nettest"},
}

// ruleFor returns the rule with the longest path that holds pkg, a path relative
// to the module.
func ruleFor(pkg string) (rule, bool) {
	best, found := rule{}, false
	for _, r := range rules {
		if under(pkg, r.path) && (!found || len(r.path) > len(best.path)) {
			best, found = r, true
		}
	}
	return best, found
}

// allowed reports whether a package of rule r may import path. The paths in extra
// are allowed too.
func (r rule) allowed(path string, extra []string) bool {
	if isStd(path) {
		for _, p := range r.noStd {
			if path == p && extra == nil {
				return false
			}
		}
		return true
	}
	if path == Module {
		return r.path == "cmd" || r.path == "test"
	}
	rel, own := strings.CutPrefix(path, Module+"/")
	if own && under(rel, r.path) {
		return true
	}
	for _, m := range append(append([]string{}, r.may...), extra...) {
		if m == anything || own && under(rel, m) || !own && under(path, m) {
			return true
		}
	}
	return false
}

// under reports whether path is dir or below it.
func under(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// isStd reports whether path is of the standard library: its first word has no dot.
func isStd(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}
