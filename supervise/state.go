package supervise

import (
	"slices"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise/process"
)

// Phase is what a kernel device is doing.
type Phase string

// Phases.
const (
	Attaching    Phase = "attaching"    // not attached yet
	Attached     Phase = "attached"     // all connections are alive, as far as is known
	Degraded     Phase = "degraded"     // some connections are dead, and being replaced
	Reconnecting Phase = "reconnecting" // all are dead; requests wait, or fail
	Refused      Phase = "refused"      // as before; a server answers, but not with what was attached. Reason says why
	Detaching    Phase = "detaching"
	Gone         Phase = "gone"     // detached, by this supervisor or by others
	Released     Phase = "released" // attached, and kept by no supervisor, until one adopts it
	Unkept       Phase = "unkept"   // attached by other means, or alone; nobody keeps it, or will
)

// State is all that is known of a kernel device that is kept. It is what files in
// [Config].Dir hold and what the control socket tells.
type State struct {
	Version    int          `json:"version"` // of this form; 1
	Index      kernel.Index `json:"index"`
	Device     string       `json:"device"` // /dev/nbd0
	Identifier string       `json:"identifier"`
	Phase      Phase        `json:"state"`
	Reason     string       `json:"reason,omitempty"` // why it is not attached; the last failure
	Spec       Spec         `json:"spec"`
	Seen       Identity     `json:"seen"`

	// What the kernel was told.
	Size        int64                   `json:"size"`       // bytes
	BlockSize   int64                   `json:"block_size"` // bytes
	Flags       proto.TransmissionFlags `json:"flags"`
	Timeout     time.Duration           `json:"timeout"`
	DeadTimeout time.Duration           `json:"dead_timeout"`
	// Limit is the size that [Device.Resize] was last asked for, in bytes, beyond which the
	// device does not grow by itself; 0 if that was all that the server has, or nobody asked.
	Limit int64 `json:"limit,omitempty"`
	// Shown says that the kernel shows the identifier. As long as it does the device is
	// this one, and not what somebody else has attached under the same number.
	Shown bool `json:"shown,omitempty"`

	// MaxRequest is the most that the kernel asks for at a time, in bytes, and MaxBefore
	// what it was before the device was attached, if it was lowered for the server.
	MaxRequest int64 `json:"max_request,omitempty"`
	MaxBefore  int64 `json:"max_before,omitempty"`

	Connections []Connection `json:"connections"`
	Reconnects  int          `json:"reconnects"` // how many connections were replaced
	Since       time.Time    `json:"since"`      // when it was attached
	Changed     time.Time    `json:"changed"`    // when Phase or Reason changed

	Process Process `json:"process"`           // that keeps it
	Control string  `json:"control,omitempty"` // the control socket of that process
}

// Tied reports whether the device's connections end with the process that keeps it: it
// relays them, or is itself the server.
func (st *State) Tied() bool {
	return st.Spec.Serve != "" || slices.ContainsFunc(st.Connections, func(c Connection) bool { return c.Relay })
}

// Waits reports whether nothing that is asked of the device is answered, until somebody
// connects it anew: no connection is alive, or those that are tied to the process have
// ended with it. kept says that this process still keeps it.
func (st *State) Waits(kept bool) bool {
	if kept {
		return st.Phase == Reconnecting || st.Phase == Refused
	}
	return st.Tied() || !slices.ContainsFunc(st.Connections, func(c Connection) bool { return c.Alive })
}

// grows reports whether the device takes whatever size the server's export has.
func (st *State) grows() bool { return st.Spec.Size == 0 && st.Limit == 0 }

// Connection is one of a device's connections.
type Connection struct {
	Server string `json:"server,omitempty"` // URI, without credentials
	Alive  bool   `json:"alive"`
	Relay  bool   `json:"relay,omitempty"` // through the supervisor: it ends with it
	// Inode is that of the kernel's socket.
	Inode uint64 `json:"inode,omitempty"`
	// Size is how many bytes the export had when this connection was made: some servers
	// do not serve more on it, though the export grows.
	Size uint64 `json:"size,omitempty"`
	// Held says that the supervisor has the socket, too, and so sees it die. It has not
	// when it has adopted a device whose last supervisor crashed.
	Held bool `json:"held"`
}

// Process names a process beyond the reuse of its number.
type Process = process.Process

// Identity is what a server told when the device was attached: what must be the same
// when it is connected again.
type Identity struct {
	Size  uint64                  `json:"size"` // bytes; may grow
	Flags proto.TransmissionFlags `json:"flags"`
	// Names has what each server calls the export, if it says so, by URI.
	Names map[string]string `json:"names,omitempty"`
	// Asked says that the server has answered on a connection of its own, beside those of
	// the kernel, where it tells its Instance. As long as it has not, a disk that another
	// one has replaced is not noticed; so it is asked again.
	Asked bool `json:"asked,omitempty"`
	// Instance names the export's contents, on servers that do; "" if it is not known.
	Instance string `json:"instance,omitempty"`
	// Peers has what was verified of each server's TLS certificate, by URI.
	Peers map[string]string `json:"peers,omitempty"`
	// InfoAgrees says that the server told by INFO what it told by GO. If not, nothing
	// is believed that it says by INFO.
	InfoAgrees bool `json:"info_agrees"`
}
