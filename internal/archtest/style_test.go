package archtest

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/token"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// What a reader can take in at once. Tests are exempt: a table of cases may be
// long.
const (
	maxFunction = 60   // lines: a screen
	maxFile     = 500  // lines: a sitting
	maxPackage  = 5000 // lines: a day
)

// tooLong lists functions ("path.go:Name") and files that may be longer, with the
// reason. Empty is best.
var tooLong = map[string]string{}

// TestSizes fails on functions, files and packages that are too long.
func TestSizes(t *testing.T) {
	packages := map[string]int{}
	for _, s := range sources(t) {
		if s.test || s.generated() {
			continue
		}
		packages[s.pkg] += s.lines()
		if n := s.lines(); n > maxFile && tooLong[s.path] == "" {
			t.Errorf("%s: %d lines, more than %d", s.path, n, maxFile)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			if n > maxFunction && tooLong[s.path+":"+f.Name.Name] == "" {
				t.Errorf("%s: function %s has %d lines, more than %d", s.fset.Position(f.Pos()), f.Name.Name, n, maxFunction)
			}
		}
	}
	for pkg, n := range packages {
		if n > maxPackage {
			t.Errorf("package %s has %d lines, more than %d", pkg, n, maxPackage)
		}
	}
}

// TestFormatted fails on files that gofmt would change.
func TestFormatted(t *testing.T) {
	for _, s := range sources(t) {
		want, err := format.Source(s.text)
		if err != nil {
			t.Errorf("%s: %v", s.path, err)
		} else if !bytes.Equal(want, s.text) {
			t.Errorf("%s: not formatted; run gofmt -w", s.path)
		}
	}
}

// TestDocumented fails on exported names, and on packages, without a comment.
func TestDocumented(t *testing.T) {
	hasDoc := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		hasDoc[s.pkg] = hasDoc[s.pkg] || s.file.Doc != nil
		if s.file.Name.Name == "main" || s.generated() {
			continue
		}
		for _, d := range s.file.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: exported %s has no comment", s.fset.Position(d.Pos()), name)
			}
		}
	}
	for pkg, ok := range hasDoc {
		if !ok {
			t.Errorf("package %s has no package comment", pkg)
		}
	}
}

// undocumented returns the exported names that d declares without a comment.
func undocumented(d ast.Decl) []string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !wellKnown[d.Name.Name] {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		if d.Tok == token.IMPORT {
			return nil
		}
		var names []string
		for _, spec := range d.Specs {
			names = append(names, undocumentedSpec(d, spec)...)
		}
		return names
	}
	return nil
}

// undocumentedSpec does the same for one line of a declaration. For constants and
// variables a comment on the group is enough.
func undocumentedSpec(d *ast.GenDecl, spec ast.Spec) []string {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && s.Doc == nil && s.Comment == nil && (d.Doc == nil || d.Lparen.IsValid()) {
			return []string{s.Name.Name}
		}
	case *ast.ValueSpec:
		var names []string
		for _, n := range s.Names {
			if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
				names = append(names, n.Name)
			}
		}
		return names
	}
	return nil
}

// wellKnown holds methods whose meaning the standard library has settled.
var wellKnown = map[string]bool{"Error": true, "String": true, "Unwrap": true, "Len": true, "Less": true, "Swap": true}

// exportedReceiver reports whether f is no method, or one of an exported type.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil || len(f.Recv.List) == 0 {
		return true
	}
	e := f.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// forbidden returns what no file of the project may say: where this machine keeps
// it, and which hosts this machine fetches packages from.
func forbidden(t *testing.T) []string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	words := []string{root + string(filepath.Separator)}
	if home, err := os.UserHomeDir(); err == nil && len(home) > 1 {
		words = append(words, home+string(filepath.Separator))
	}
	for _, p := range strings.FieldsFunc(os.Getenv("GOPROXY"), func(r rune) bool { return r == ',' || r == '|' }) {
		if u, err := url.Parse(p); err == nil && u.Hostname() != "" {
			words = append(words, u.Hostname())
		}
	}
	return words
}

// TestForbiddenWords fails where a text file names a machine's own folders or a
// package registry's host.
func TestForbiddenWords(t *testing.T) {
	words := forbidden(t)
	walk(t, func(path, rel string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%v", err)
			return
		}
		if !utf8.Valid(text) {
			return
		}
		for _, w := range words {
			if i := bytes.Index(text, []byte(w)); i >= 0 {
				line := 1 + strings.Count(string(text[:i]), "\n")
				t.Errorf("%s:%d: says %q", rel, line, w)
			}
		}
	})
}
