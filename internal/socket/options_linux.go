package socket

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// SetNoDelay says whether the system sends small packets at once (true), or gathers.
func (c *Conn) SetNoDelay(on bool) error {
	return c.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, number(on))
}

// SetKeepAliveConfig sets how the system looks whether the peer is still there. Times are
// rounded up to seconds; what is 0 or less is left as it is.
func (c *Conn) SetKeepAliveConfig(k net.KeepAliveConfig) error {
	seconds := func(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
	if err := c.set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, number(k.Enable)); err != nil {
		return err
	}
	for _, o := range []struct{ option, value int }{
		{unix.TCP_KEEPIDLE, seconds(k.Idle)}, {unix.TCP_KEEPINTVL, seconds(k.Interval)}, {unix.TCP_KEEPCNT, k.Count},
	} {
		if o.value > 0 {
			if err := c.set(unix.IPPROTO_TCP, o.option, o.value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Conn) set(level, option, value int) error {
	if err := c.use(); err != nil {
		return c.error("set", err)
	}
	defer c.done()
	return c.error("set", os.NewSyscallError("setsockopt", unix.SetsockoptInt(c.fd, level, option, value)))
}

func number(on bool) int {
	if on {
		return 1
	}
	return 0
}
