//go:build !linux

package transmission

// watch cannot ask here: who is dead is found out when it has been read to its
// end.
type watch struct{}

func (*watch) add(*conn)          {}
func (*watch) remove(*conn)       {}
func (*watch) close()             {}
func (*watch) hungUp(int) []int32 { return nil }
