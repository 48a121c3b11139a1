package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
)

// TestWarnOfCache: exports through the page cache are named, if clients swap here.
func TestWarnOfCache(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "disk.img", "x")
	for _, tt := range []struct {
		export nbdconf.Export
		warned bool
	}{
		{nbdconf.Export{ExportName: path}, true},
		{nbdconf.Export{ExportName: "file:" + path}, true},
		{nbdconf.Export{ExportName: "file:" + path + ",direct"}, false},
		{nbdconf.Export{ExportName: "file:" + path + ",direct | offset:512"}, false},
		{nbdconf.Export{ExportName: "file:" + path + ",sync | offset:512"}, true},
		{nbdconf.Export{ExportName: path, MultiFile: true}, true},
		{nbdconf.Export{ExportName: path, TreeFiles: true, FileSize: 4096}, false},
		{nbdconf.Export{ExportName: "memory:1M"}, false},
	} {
		for _, swap := range []bool{true, false} {
			var log bytes.Buffer
			p := &program{swap: swap, env: &environment{open: opener.OS{Dir: dir}}, log: slog.New(slog.NewTextHandler(&log, nil))}
			if _, err := p.export(&tt.export); err != nil {
				t.Errorf("%s: %v", tt.export.ExportName, err)
			}
			if warned := strings.Contains(log.String(), "not fit for swap"); warned != (tt.warned && swap) {
				t.Errorf("%s, multifile %t: swap %t: the log is %q", tt.export.ExportName, tt.export.MultiFile, swap, log.String())
			}
		}
	}
}
