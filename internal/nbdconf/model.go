package nbdconf

// Tri is a boolean that may have been left out.
type Tri int

// Values of a Tri.
const (
	Unset Tri = iota
	False
	True
)

// Config is a whole configuration: what the files say, nothing opened yet.
type Config struct {
	Generic Generic
	Exports []*Export
	// Files are all files that were read, the main one first.
	Files []string
}

// Generic is the section [generic]. The zero value is what an empty section means.
type Generic struct {
	Port       string
	ListenAddr []string
	UnixSock   string
	DualListen bool
	Listen     []string // as ParseAddress reads them
	AllowList  bool
	IncludeDir string
	User       string
	Group      string
	MaxThreads int // 0 means the engine's default
	ForceTLS   bool
	CertFile   string
	KeyFile    string
	CACertFile string
	TLSPrio    string
	Control    string
	OldStyle   bool // serve exports that have a port to antique clients
	RunUser    string
	Swap       bool // clients swap on this machine
	Splice     bool
	TLSOnly    bool // another name of ForceTLS; see DemandsTLS
	Limits     Limits

	where places
}

// Limits bound what clients can make the server do. 0 means what the manual says.
type Limits struct {
	MaxConnections   int
	MaxPerClient     int
	MaxMemory        int64 // bytes
	MaxPayload       int64 // bytes
	MaxRequests      int
	HandshakeTimeout int // seconds; below 0 none
	StuckTimeout     int // the same
}

// Export is one export section.
type Export struct {
	Name           string
	Description    string // for people; "" for none
	ExportName     string
	FileSize       int64 // bytes; 0 means that of the file
	ReadOnly       bool
	CopyOnWrite    bool
	SparseCOW      bool
	COWDir         string
	Temporary      bool
	Flush          Tri
	FUA            Tri
	Trim           Tri
	Rotational     bool
	Sync           bool
	AuthFile       string
	MinBlock       int64 // bytes; 0 means 1
	MaxConnections int   // 0 means no limit
	TransactionLog string
	DataLog        bool
	ForceTLS       bool
	Splice         bool
	TLSOnly        bool // another name of ForceTLS; see DemandsTLS
	MultiFile      bool
	TreeFiles      bool
	WaitFile       string // "" for none, "true" for one beside the file, or its path
	VirtStyle      string // as ParseVirtStyle reads it; "" means ipliteral
	PreRun         string
	PostRun        string
	PreRunTimeout  int      // seconds; 0 means what the manual says, below 0 none
	PostRunTimeout int      // the same
	Timeout        int      // seconds; 0 means none
	Port           string   // for antique clients; "" means none
	ListenAddr     []string // for antique clients; empty means that of [generic]

	Pos   Pos // of the section
	where places
}

// DemandsTLS reports whether nothing is served without TLS.
func (g *Generic) DemandsTLS() bool { return g.ForceTLS || g.TLSOnly }

// DemandsTLS reports whether the export itself is not served without TLS.
func (x *Export) DemandsTLS() bool { return x.ForceTLS || x.TLSOnly }

// places remembers where each key was given.
type places map[string]Pos

// Where returns the place of key, or that of the section if it was not given.
func (x *Export) Where(key string) Pos {
	if p, ok := x.where[key]; ok {
		return p
	}
	return x.Pos
}

// Virtual returns the style of virtualization. One that cannot be understood was
// reported by Load.
func (x *Export) Virtual() VirtStyle {
	if x.VirtStyle == "" {
		return VirtStyle{}
	}
	v, err := ParseVirtStyle(x.VirtStyle)
	if err != nil {
		return VirtStyle{Name: "none"}
	}
	return v
}

func (x *Export) given(key string) bool {
	_, ok := x.where[key]
	return ok
}

// Where returns the place of key, and whether it was given at all.
func (g *Generic) Where(key string) (Pos, bool) {
	p, ok := g.where[key]
	return p, ok
}
