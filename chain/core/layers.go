package core

import (
	"math"

	"nbd.example/nbd/block"
	"nbd.example/nbd/chain"
	"nbd.example/nbd/layer/cow"
	"nbd.example/nbd/layer/delay"
	"nbd.example/nbd/layer/fault"
	"nbd.example/nbd/layer/offset"
	"nbd.example/nbd/layer/partition"
	"nbd.example/nbd/layer/readonly"
	"nbd.example/nbd/layer/truncate"
	"nbd.example/nbd/layer/wait"
)

func addLayers(r *chain.Registry, f Files) {
	r.Layer(chain.Layer{
		Element: chain.Element{Name: "readonly", Summary: "refuses every change"},
		Make:    func(chain.Args) (block.Layer, error) { return readonly.Layer(), nil },
	})
	r.Layer(cowLayer(f))
	r.Layer(offsetLayer())
	r.Layer(truncateLayer())
	r.Layer(delayLayer())
	r.Layer(faultLayer())
	r.Layer(partitionLayer())
	r.Layer(waitLayer(f))
}

func partitionLayer() chain.Layer {
	return chain.Layer{
		Element: chain.Element{
			Name: "partition", Summary: "shows one partition of a disk with an MBR or a GPT",
			Params: []chain.Param{
				{Name: "number", Kind: chain.Number, Main: true, Required: true, Help: "its number, as Linux counts: from 1 on, logical ones from 5 on"},
				{Name: "sector", Kind: chain.Size, Help: "size of a sector, 512 or 4096; 0 finds out"},
			},
		},
		Make: func(a chain.Args) (block.Layer, error) {
			return partition.Layer(partition.Config{Number: int(min(a.Number("number"), math.MaxInt32)), Sector: a.Size("sector")}), nil
		},
	}
}

func waitLayer(files Files) chain.Layer {
	return chain.Layer{
		Element: chain.Element{
			Name: "wait", Summary: "keeps changes in a file, the diff, until they are merged into the device below",
			Params: []chain.Param{
				{Name: "diff", Kind: chain.Path, Main: true, Required: true, Help: "the file; it is made if it is not there, and goes on if it is"},
			},
		},
		Make: func(a chain.Args) (block.Layer, error) {
			return wait.Layer(wait.Config{Diff: a.Text("diff"), Group: files.Waits, Open: files.Open, Remove: files.Remove}), nil
		},
	}
}

func cowLayer(files Files) chain.Layer {
	return chain.Layer{
		Element: chain.Element{
			Name: "cow", Summary: "keeps changes in a temporary file, and drops them at the end",
			Params: []chain.Param{
				{Name: "dir", Kind: chain.Path, Help: "folder of the temporary file; without it, the system's"},
				{Name: "sparse", Kind: chain.Bool, Help: "give each block its own place in a sparse file"},
			},
		},
		Make: func(a chain.Args) (block.Layer, error) {
			return cow.Layer(cow.Config{Dir: a.Text("dir"), Sparse: a.Bool("sparse"), CreateTemp: files.CreateTemp}), nil
		},
	}
}

func offsetLayer() chain.Layer {
	return chain.Layer{
		Element: chain.Element{
			Name: "offset", Summary: "shows a stretch of a device",
			Params: []chain.Param{
				{Name: "offset", Kind: chain.Size, Main: true, Required: true, Help: "where it begins"},
				{Name: "size", Kind: chain.Size, Help: "how long it is; 0 means to the end"},
			},
		},
		Make: func(a chain.Args) (block.Layer, error) {
			return offset.Layer(offset.Config{Offset: a.Size("offset"), Size: a.Size("size")}), nil
		},
	}
}

func truncateLayer() chain.Layer {
	config := func(a chain.Args) truncate.Config {
		return truncate.Config{Size: a.Size("size"), RoundUp: a.Size("round-up"), RoundDown: a.Size("round-down")}
	}
	return chain.Layer{
		Element: chain.Element{
			Name: "truncate", Summary: "makes a device smaller or larger; what is not there reads as zeroes",
			Params: []chain.Param{
				{Name: "size", Kind: chain.Size, Main: true, Help: "the new size; 0 means that of the device"},
				{Name: "round-up", Kind: chain.Size, Help: "round the size up to a multiple of this"},
				{Name: "round-down", Kind: chain.Size, Help: "round the size down to a multiple of this"},
			},
			Check: func(a chain.Args) error { return config(a).Check() },
		},
		Make: func(a chain.Args) (block.Layer, error) { return truncate.Layer(config(a)), nil },
	}
}

func delayLayer() chain.Layer {
	params := []chain.Param{{Name: "all", Kind: chain.Duration, Main: true, Help: "wait before every operation that has no time of its own"}}
	for _, kind := range []string{"read", "write", "flush", "trim", "zero", "extents", "cache"} {
		params = append(params, chain.Param{Name: kind, Kind: chain.Duration, Help: "wait before each operation of this kind"})
	}
	return chain.Layer{
		Element: chain.Element{Name: "delay", Summary: "makes operations slow", Params: params},
		Make: func(a chain.Args) (block.Layer, error) {
			return delay.Layer(delay.Config{
				All: a.Duration("all"), Read: a.Duration("read"), Write: a.Duration("write"), Flush: a.Duration("flush"),
				Trim: a.Duration("trim"), Zero: a.Duration("zero"), Extents: a.Duration("extents"), Cache: a.Duration("cache"),
			}), nil
		},
	}
}

func faultLayer() chain.Layer {
	return chain.Layer{
		Element: chain.Element{
			Name: "fault", Summary: "makes operations fail, by rules like read@4096+512=EIO",
			Params: []chain.Param{
				{Name: "rules", Kind: chain.Text, Main: true, Verbatim: true, Required: true, Help: "what fails, and how; rules are separated by commas or semicolons"},
				{Name: "seed", Kind: chain.Number, Help: "makes what is left to chance repeatable"},
			},
			Check: func(a chain.Args) error {
				_, err := fault.Parse(a.Text("rules"))
				return err
			},
		},
		Make: func(a chain.Args) (block.Layer, error) {
			s, err := fault.New(a.Text("rules"))
			if err != nil {
				return nil, err
			}
			s.Seed = uint64(a.Number("seed"))
			return fault.Layer(s), nil
		},
	}
}
