package transmission

// Group holds the connections of one shared device: one order of changes, and
// the fence that keeps a dead connection's writes from landing late. The zero
// value is ready.
type Group struct{}
