package archtest

import (
	"go/ast"
	"strconv"
	"testing"
)

// TestImports fails on an import that the table in rules.go does not allow.
func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		r, ok := ruleFor(s.pkg)
		if !ok {
			t.Errorf("%s: package %s stands in no row of the table in rules.go", s.path, s.pkg)
			continue
		}
		var extra []string
		if s.test {
			extra = append(append(extra, forTests...), moreForTests[r.path]...)
		}
		for _, imp := range s.file.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Errorf("%s: %v", s.fset.Position(imp.Pos()), err)
				continue
			}
			if !r.allowed(path, extra) {
				t.Errorf("%s: packages of %q may not import %q; see the table in rules.go", s.fset.Position(imp.Pos()), r.path, path)
			}
		}
	}
}

// TestRules tries the judge itself.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		pkg, path string
		want      bool
	}{
		{"proto", "encoding/binary", true},
		{"proto", "net", false},
		{"proto", Module + "/block", false},
		{"handshake", "net", true},
		{"handshake", Module + "/proto", true},
		{"handshake", Module + "/transmission", false},
		{"block", Module + "/internal/ranges", true},
		{"block", Module + "/proto", false},
		{"block/blocktest", Module + "/block", true},
		{"block/blocktest", Module + "/internal/ranges", false},
		{"layer/cow", Module + "/block", true},
		{"layer/cow", Module + "/backend/file", false},
		{"layer/cow", Module + "/blockade", false},
		{"backend/file", "golang.org/x/sys/unix", true},
		{"backend/file", Module + "/client", false},
		{"backend/remote", Module + "/client", true},
		{"server", "golang.org/x/net/ipv4", false},
		{"cmd/nbd-server", "github.com/coreos/go-systemd/v22/daemon", true},
	} {
		r, ok := ruleFor(c.pkg)
		if !ok {
			t.Errorf("no rule for %s", c.pkg)
			continue
		}
		if got := r.allowed(c.path, nil); got != c.want {
			t.Errorf("%s imports %s: allowed %t, want %t", c.pkg, c.path, got, c.want)
		}
	}
	if _, ok := ruleFor("elsewhere"); ok {
		t.Error("a package outside the table has a rule")
	}
}

// TestNoEmbedding fails where a back end or a layer embeds something of package
// block. A layer that embeds what it wraps forwards methods that it never thought
// of: a Trim that reaches behind a copy-on-write layer discards the base image.
func TestNoEmbedding(t *testing.T) {
	for _, s := range sources(t) {
		if !under(s.pkg, "layer") && !under(s.pkg, "backend") && !under(s.pkg, "chain") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			st, ok := n.(*ast.StructType)
			if !ok {
				return true
			}
			for _, f := range st.Fields.List {
				if name := blockType(f.Type); len(f.Names) == 0 && name != "" {
					t.Errorf("%s: embeds block.%s; name the field and forward by hand", s.fset.Position(f.Pos()), name)
				}
			}
			return true
		})
	}
}

// blockType returns X if e is block.X or *block.X, for the types that have methods
// which must not be forwarded unseen.
func blockType(e ast.Expr) string {
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "block" {
		return ""
	}
	switch sel.Sel.Name {
	case "Backend", "Device", "Writer", "Flusher", "Trimmer", "ZeroWriter", "Extenter", "Cacher", "Direct", "Resizer":
		return sel.Sel.Name
	}
	return ""
}
