package nbdioctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

// device is a kernel device that this process has attached, or is about to.
type device struct {
	index kernel.Index
	node  string
	steps []step

	served atomic.Bool // NBD_DO_IT was called, or just not
	ending atomic.Bool // it is to be detached
	done   chan struct{}
	err    error // why it ended; read it after done is closed

	mu      sync.Mutex
	sockets []int // descriptors of our own
	// control is a descriptor of the node, beside that of the thread in NBD_DO_IT, -1
	// when there is none. To open the node when it is needed could hang: the kernel may
	// want to read partitions.
	control int
	enders  sync.WaitGroup // use control
}

// newDevice takes descriptors of its own of the sockets.
func newDevice(node string, i kernel.Index, a *kernel.Attach, steps []step) (*device, error) {
	dev := &device{index: i, node: node, steps: steps, control: -1, done: make(chan struct{})}
	for _, f := range a.Sockets {
		raw, err := f.SyscallConn()
		if err != nil {
			dev.discard()
			return nil, err
		}
		var n int
		problem := raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		if err := errors.Join(problem, err); err != nil {
			dev.discard()
			return nil, fmt.Errorf("socket %s: %w", f.Name(), err)
		}
		dev.sockets = append(dev.sockets, n)
	}
	return dev, nil
}

// discard closes the sockets' descriptors.
func (dev *device) discard() {
	dev.mu.Lock()
	defer dev.mu.Unlock()
	for _, fd := range dev.sockets {
		unix.Close(fd)
	}
	dev.sockets = nil
}

// why says why the device ended.
func (dev *device) why() error {
	if dev.err == nil {
		return errors.New("its connections were dead at once")
	}
	return dev.err
}

// serve attaches the device and returns when it is detached.
func (dev *device) serve() error {
	// The driver wants all sockets from one thread, and no signals for it. The thread is
	// given back as it was: were it left to end with this goroutine, and the process's
	// first one, it could not end, and would be deaf for ever.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	defer dev.discard()
	return withNode(dev.node, dev.attach)
}

// attach does it with the node's descriptor.
func (dev *device) attach(fd int) error {
	// The first one claims the device: what comes later is not another process's.
	for n, s := range dev.sockets {
		if err := ioctl(fd, setSock, uint64(s)); err != nil {
			if n > 0 {
				err = errors.Join(err, ioctl(fd, clearSock, 0))
			}
			return err
		}
	}
	err := perform(fd, dev.steps)
	if err == nil {
		// The driver marks the device read-only by its flags. The mark of a BLKROSET
		// before us would stay beside that.
		err = os.NewSyscallError("BLKROSET", unix.IoctlSetPointerInt(fd, unix.BLKROSET, 0))
	}
	if err == nil {
		err = dev.serveUntilEnd(fd)
	}
	// What waits for a reply would wait on.
	return errors.Join(err, ioctl(fd, clearQueue, 0), ioctl(fd, clearSock, 0))
}

// serveUntilEnd lends the thread to the driver.
func (dev *device) serveUntilEnd(fd int) error {
	control, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	dev.mu.Lock()
	dev.control = control
	dev.mu.Unlock()
	dev.served.Store(true)
	if !dev.ending.Load() { // else nobody would end it
		err = ioctl(fd, doIt, 0)
	}
	dev.mu.Lock()
	dev.control = -1
	dev.mu.Unlock()
	dev.enders.Wait()
	return errors.Join(err, unix.Close(control))
}

// end asks for the device to be detached. That hangs if a peer reads no more, until the
// sockets are shut down.
func (dev *device) end() {
	dev.ending.Store(true)
	dev.mu.Lock()
	defer dev.mu.Unlock()
	if fd := dev.control; fd >= 0 {
		dev.enders.Go(func() {
			// It fails only if the device has ended by itself.
			_ = ioctl(fd, disconnect, 0)
			dev.shutdown() // the server need not answer
		})
	}
}

// shutdown ends all connections.
func (dev *device) shutdown() {
	dev.mu.Lock()
	defer dev.mu.Unlock()
	for _, fd := range dev.sockets {
		unix.Shutdown(fd, unix.SHUT_RDWR) // those that are dead are
	}
}

// detach detaches the device and waits until the driver has let go of it. When ctx ends
// first, the connections are cut off without a word.
func (dev *device) detach(ctx context.Context) {
	dev.end()
	select {
	case <-dev.done:
	case <-ctx.Done():
		dev.shutdown()
		<-dev.done
	}
}

// perform does the steps.
func perform(fd int, steps []step) error {
	for _, s := range steps {
		if err := ioctl(fd, s.request, s.arg); err != nil {
			return err
		}
	}
	return nil
}

// ioctl does one.
func ioctl(fd int, r request, arg uint64) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(r), uintptr(arg))
		switch {
		case errno == 0:
			return nil
		case errno == unix.EINTR && r != doIt:
			continue
		}
		return explain(os.NewSyscallError(r.String(), errno))
	}
}

// explain turns error numbers into errors of package kernel.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", kernel.ErrPermission, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", kernel.ErrBusy, err)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", kernel.ErrNoDevice, err)
	}
	return err
}
