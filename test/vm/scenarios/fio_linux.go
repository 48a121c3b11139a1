package scenarios

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// fio verifies what it has written, while the server dies and comes back.
func fio(t *guest.T) {
	const size = 64 * mib
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), size)
	s := serve(t, image)
	k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Connections: 2, Args: []string{"-t", "3"}}.Do(t, 0)
	job := harness.Spawn(t, nil, "fio", "--name=verify", "--filename="+k.Path, "--direct=1", "--ioengine=libaio", "--iodepth=16",
		"--rw=randwrite", "--bsrange=4k-64k", "--size=64M", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
		"--verify_state_save=0", "--loops=4", "--output=/dev/null", "--randrepeat=1")
	rounds := 0
	for over := false; !over && rounds < 5; {
		at := done(t, k.Name)
		t.AwaitFor(back, "fio goes on", func() bool {
			select {
			case <-job.Exited():
				over = true
			default:
			}
			return over || done(t, k.Name) > at+300
		})
		if !over {
			s.Kill()
			s.Restart(t)
			rounds++
		}
	}
	if err := job.Wait(); err != nil {
		t.Errorf("fio: %v:\n%s", err, job.Log())
	}
	if rounds == 0 {
		t.Error("fio ended before the server was killed once")
	}
	t.Logf("the server was killed %d times", rounds)
	k.Detach()
	s.Stop()
}

// done returns how many reads and writes a block device has completed.
func done(t *guest.T, device string) (n int) {
	text, err := os.ReadFile("/sys/block/" + device + "/stat")
	t.Must(err, "statistics")
	for _, i := range []int{0, 4} {
		k, err := strconv.Atoi(strings.Fields(string(text))[i])
		t.Must(err, "statistics")
		n += k
	}
	return n
}
