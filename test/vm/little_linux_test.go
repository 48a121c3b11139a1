package vm

import (
	"os"
	"path/filepath"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/vm/scenarios"
)

// TestLittleMemory runs the scenarios for a machine with little memory,
// TestLittleMemory/SERIES/SCENARIO. Each has a machine of its own: what one has done to
// the memory would be there for the next.
func TestLittleMemory(t *testing.T) {
	choose(t, "LittleMemory")
	programs := []string{"mkfs.ext4"}
	testgate.Requires(t, Need(programs...))
	t.Parallel()
	dir := t.TempDir()
	c := Contents{
		Init: filepath.Join(dir, "init"), Server: filepath.Join(dir, "nbd-server"), Client: filepath.Join(dir, "nbd-client"),
		Programs: programs, Files: scenarios.Files(), Applets: []string{"sh", "mkswap", "swapon"},
		Modules: scenarios.LittleModules(), Options: map[string]string{"nbd": "nbds_max=1"}, Network: true,
	}
	for pkg, path := range map[string]string{"test/vm/init": c.Init, "cmd/nbd-server": c.Server, "cmd/nbd-client": c.Client} {
		if err := Build(t.Context(), "nbd.example/nbd/"+pkg, path); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range series {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runLittle(t, name, c)
		})
	}
}

// runLittle runs the scenarios on one kernel.
func runLittle(t *testing.T, name string, c Contents) {
	k, err := FetchKernel(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	lab := NewLab(t, "little-"+name, k, c)
	lab.memory = scenarios.LittleMemory
	lab.disk = filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(lab.disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(lab.disk, scenarios.LittleDiskSize); err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios.Little() {
		if runs(&s, name) {
			t.Run(s.Name, func(t *testing.T) {
				var args []string
				if s.Host != nil {
					args = s.Host(t)
				}
				lab.limit = 0
				if s.Long {
					lab.limit = longLimit
				}
				lab.Run(t, s.Name, args...)
				lab.discard()
			})
		}
	}
}
