package tasks

import "context"

// Turn is a lock for which one waits no longer than one may. It holds one while it is free.
type Turn chan struct{}

// NewTurn returns a turn that is free.
func NewTurn() Turn {
	t := make(Turn, 1)
	t <- struct{}{}
	return t
}

// Take waits for the turn, for as long as ctx allows.
func (t Turn) Take(ctx context.Context) error {
	select {
	case <-t:
		return nil
	default:
	}
	select {
	case <-t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TryTake takes the turn if it is free.
func (t Turn) TryTake() bool {
	select {
	case <-t:
		return true
	default:
		return false
	}
}

// Give gives the turn back.
func (t Turn) Give() { t <- struct{}{} }
