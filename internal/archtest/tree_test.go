package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root is the top of the module, seen from this package's folder.
const root = "../.."

// source is one Go file of the module.
type source struct {
	path string // relative to the top, with slashes
	pkg  string // folder of path
	test bool
	text []byte
	file *ast.File
	fset *token.FileSet
}

// lines returns how many lines the file has.
func (s *source) lines() int { return s.fset.File(s.file.Pos()).LineCount() }

// generated reports whether the file says that a program wrote it.
func (s *source) generated() bool { return ast.IsGenerated(s.file) }

// walk calls f for each regular file of the module, but not for what git keeps,
// nor for built programs.
func walk(t *testing.T, f func(path, rel string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() && (rel == ".git" || rel == "bin") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() && rel != ".git" {
			f(path, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sources parses every Go file of the module, except in testdata.
func sources(t *testing.T) []*source {
	t.Helper()
	var all []*source
	walk(t, func(path, rel string) {
		if !strings.HasSuffix(rel, ".go") || strings.Contains("/"+rel, "/testdata/") {
			return
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, rel, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("parse: %v", err)
			return
		}
		dir := "."
		if i := strings.LastIndex(rel, "/"); i >= 0 {
			dir = rel[:i]
		}
		all = append(all, &source{
			path: rel, pkg: dir, test: strings.HasSuffix(rel, "_test.go"),
			text: text, file: file, fset: fset,
		})
	})
	if len(all) < 10 {
		t.Fatalf("found only %d Go files below %s", len(all), root)
	}
	return all
}
