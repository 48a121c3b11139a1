package core

import (
	"context"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/backend/multi"
	"nbd.example/nbd/backend/null"
	"nbd.example/nbd/backend/pattern"
	"nbd.example/nbd/backend/tree"
	"nbd.example/nbd/block"
	"nbd.example/nbd/chain"
)

func addBackends(r *chain.Registry, f Files) {
	r.Backend(fileBackend(f))
	r.Backend(multiBackend(f))
	r.Backend(treeBackend(f))
	r.Backend(memoryBackend())
	r.Backend(sized("null", "reads as zeroes, forgets what is written", func(size int64) (block.Backend, error) {
		return null.New(null.Config{Size: size})
	}))
	r.Backend(sized("pattern", "every 8 bytes hold their own offset, big-endian; read-only", func(size int64) (block.Backend, error) {
		return pattern.New(pattern.Config{Size: size})
	}))
}

func fileBackend(files Files) chain.Backend {
	return chain.Backend{
		Element: chain.Element{
			Name: chain.FileElement, Summary: "a regular file or a block device",
			Params: []chain.Param{
				{Name: "path", Kind: chain.Path, Main: true, Required: true, Help: "the file"},
				{Name: "readonly", Kind: chain.Bool, Help: "open it for reading only"},
				{Name: "direct", Kind: chain.Bool, Help: "bypass the page cache"},
				{Name: "sync", Kind: chain.Bool, Help: "make every write stable before it is answered"},
				{Name: "map", Kind: chain.Bool, Help: "send what is read again and again from a mapping of the file"},
				{Name: "size", Kind: chain.Size, Help: "size to offer; 0 means that of the file"},
				{Name: "force", Kind: chain.Bool, Help: "open it even if it is in use"},
			},
		},
		Open: func(_ context.Context, a chain.Args) (block.Backend, error) {
			f, err := file.Open(file.Config{
				Path: a.Text("path"), ReadOnly: a.Bool("readonly"), Direct: a.Bool("direct"),
				Sync: a.Bool("sync"), Map: a.Bool("map"), Size: a.Size("size"), Force: a.Bool("force"),
				Open: files.Open, Stat: files.Stat,
			})
			if err != nil {
				return nil, err
			}
			return f, nil
		},
	}
}

func multiBackend(files Files) chain.Backend {
	return chain.Backend{
		Element: chain.Element{
			Name: "multi", Summary: "the files PATH.0, PATH.1 and so on, one behind the other",
			Params: []chain.Param{
				{Name: "path", Kind: chain.Path, Main: true, Required: true, Help: "name of the files, without the number"},
				{Name: "readonly", Kind: chain.Bool, Help: "open them for reading only"},
				{Name: "direct", Kind: chain.Bool, Help: "bypass the page cache"},
				{Name: "sync", Kind: chain.Bool, Help: "make every write stable before it is answered"},
				{Name: "force", Kind: chain.Bool, Help: "open them even if they are in use"},
			},
		},
		Open: func(_ context.Context, a chain.Args) (block.Backend, error) {
			return multi.Open(multi.Config{
				Path: a.Text("path"), ReadOnly: a.Bool("readonly"), Direct: a.Bool("direct"),
				Sync: a.Bool("sync"), Force: a.Bool("force"), Open: files.Open, Stat: files.Stat,
			})
		},
	}
}

func treeBackend(files Files) chain.Backend {
	return chain.Backend{
		Element: chain.Element{
			Name: "tree", Summary: "a folder with a file for each block of 4096 bytes",
			Params: []chain.Param{
				{Name: "path", Kind: chain.Path, Main: true, Required: true, Help: "the folder; it is made if it is not there"},
				{Name: "size", Kind: chain.Size, Required: true, Help: "size of the device, which the names of the files depend on"},
				{Name: "readonly", Kind: chain.Bool, Help: "open it for reading only"},
				{Name: "sync", Kind: chain.Bool, Help: "make every write stable before it is answered"},
				{Name: "force", Kind: chain.Bool, Help: "open it even if it is in use"},
			},
		},
		Open: func(_ context.Context, a chain.Args) (block.Backend, error) {
			t, err := tree.Open(tree.Config{
				Path: a.Text("path"), Size: a.Size("size"), ReadOnly: a.Bool("readonly"), Sync: a.Bool("sync"), Force: a.Bool("force"),
				Open: files.Open, Mkdir: files.Mkdir, Remove: files.Remove,
			})
			if err != nil {
				return nil, err
			}
			return t, nil
		},
	}
}

func memoryBackend() chain.Backend {
	return chain.Backend{
		Element: chain.Element{
			Name: "memory", Summary: "a sparse disk in memory, gone when it is closed",
			Params: []chain.Param{
				{Name: "size", Kind: chain.Size, Main: true, Required: true, Help: "its size"},
				{Name: "limit", Kind: chain.Size, Help: "the most memory that it takes; 0 means no limit"},
			},
		},
		Open: func(_ context.Context, a chain.Args) (block.Backend, error) {
			return memory.New(memory.Config{Size: a.Size("size"), Limit: a.Size("limit")})
		},
	}
}

// sized declares a back end that has a size and nothing else.
func sized(name, summary string, open func(size int64) (block.Backend, error)) chain.Backend {
	return chain.Backend{
		Element: chain.Element{
			Name: name, Summary: summary,
			Params: []chain.Param{{Name: "size", Kind: chain.Size, Main: true, Required: true, Help: "its size"}},
		},
		Open: func(_ context.Context, a chain.Args) (block.Backend, error) { return open(a.Size("size")) },
	}
}
