package client_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/client"
)

// TestPeers uses servers by others in every style of replies.
func TestPeers(t *testing.T) {
	const size = 8 << 20
	for _, p := range peers {
		for _, cfg := range []client.Config{{}, {NoExtended: true, NoStructured: true}} {
			cfg.DialContext = patiently
			t.Run(fmt.Sprintf("%s/simple=%v", p.name, cfg.NoStructured), func(t *testing.T) {
				ctx := t.Context()
				uri, _ := p.serve(t, size)
				c := dial(t, uri, &cfg)
				if c.Size() != size || c.Structured() != (!cfg.NoStructured && !p.noStructured) {
					t.Errorf("size %d, structured %v, %v", c.Size(), c.Structured(), c.Export())
				}
				d, err := block.New(c)
				if err != nil {
					t.Fatal(err)
				}
				data := make([]byte, 3<<20)
				rng := rand.NewChaCha8([32]byte{1})
				rng.Read(data)
				if err := d.WriteAt(ctx, data, 12345, block.FUA); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(data))
				if err := d.ReadAt(ctx, got, 12345); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%v, same: %v", err, bytes.Equal(got, data))
				}
				if err := d.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				if err := d.WriteZeroes(ctx, 1<<20, 1<<20, 0); err != nil {
					t.Fatal(err)
				}
				clear(data[1<<20-12345:][:1<<20])
				if err := d.ReadAt(ctx, got, 12345); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%v, same: %v", err, bytes.Equal(got, data))
				}
				if d.Caps().Trim == block.Native {
					if err := d.Trim(ctx, 1<<20, 1<<20, 0); err != nil {
						t.Fatal(err)
					}
				}
				if native := d.Caps().Extents == block.Native; native != (c.Structured() && !p.noStatus) {
					t.Errorf("extents: %v", d.Caps().Extents)
				}
				var covered int64
				if err := d.Extents(ctx, 0, size, 0, func(x block.Extent) bool { covered += x.Length; return true }); err != nil || covered != size {
					t.Errorf("extents cover %d bytes, %v", covered, err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
				if p.once {
					return
				}
				again := dial(t, uri, &cfg)
				defer again.Close()
				if err := again.ReadAt(ctx, got[:4096], 2<<20); err != nil || !bytes.Equal(got[:4096], data[2<<20-12345:][:4096]) {
					t.Errorf("after connecting again: %v", err)
				}
			})
		}
	}
}

// TestConformance runs the suite of back ends over all peers.
func TestConformance(t *testing.T) {
	for _, p := range peers {
		for _, cfg := range []client.Config{{}, {NoExtended: true, NoStructured: true}} {
			cfg.DialContext = patiently
			if cfg.NoStructured && p.noStructured {
				continue // the same once more
			}
			t.Run(fmt.Sprintf("%s/simple=%v", p.name, cfg.NoStructured), func(t *testing.T) {
				blocktest.Run(t, blocktest.Target{
					Open: func(t testing.TB, size int64) (block.Backend, error) {
						uri, stop := p.serve(t, size)
						c, err := client.Dial(t.Context(), uri, &cfg)
						return served{c, stop}, err
					},
					SizeUnit: 512,
					Steps:    200,
				})
			})
		}
	}
}

// served is a connection to a server that ends with it.
type served struct {
	*client.Conn
	stop func()
}

func (s served) Close() error {
	err := s.Conn.Close()
	s.stop()
	return err
}
