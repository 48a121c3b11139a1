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
	OldStyle   bool
	Splice     bool

	where places
}

// Export is one export section.
type Export struct {
	Name           string
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
	MaxConnections int // 0 means no limit
	ForceTLS       bool
	Splice         bool

	Pos   Pos // of the section
	where places
}

// places remembers where each key was given.
type places map[string]Pos

// Where returns the place of key, or that of the section if it was not given.
func (x *Export) Where(key string) Pos {
	if p, ok := x.where[key]; ok {
		return p
	}
	return x.Pos
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
