// Package fault is a layer that makes operations fail on purpose, by rules.
//
// # Concepts
//
// A [Script] is a list of rules. Each [Rule] says which operations it means (their
// kinds and the range they touch), when (always, only the third time, one time
// in ten), and what then happens: an error, after the operation has been
// done in part or not at all, or a panic. The first rule that fires decides; an
// operation that no rule fires for is done by the device below. A Script can be
// changed while its layers are in use.
//
// Rules have a text form:
//
//	read@4096+512=EIO        a bad sector: reading any byte of it fails
//	write:3=ENOSPC           the third write fails
//	write:3+=ENOSPC          the third and all later ones
//	flush:once=EIO           the first flush; "flush=EIO:once" means the same
//	read/write:10%=EIO       about one in ten
//	write:2=EIO/512          the second write is torn: 512 bytes are written
//	read:5=panic             the fifth read panics
//
// In full, with spaces allowed around each rule:
//
//	rules     = rule { ( ";" | "," | newline ) rule }
//	rule      = kinds [ range ] { ":" when } "=" effect { ":" when }
//	kinds     = kind { "/" kind }
//	kind      = "read" | "write" | "flush" | "trim" | "zero" | "extents" | "cache" | "all"
//	range     = "@" offset [ "+" length ]                    bytes; without a length: to the end
//	when      = "once" | number | number "+" | number "-" number | percentage "%"
//	effect    = error [ "/" bytes ] | "panic"
//	error     = name | number                                EIO, or 5
//
// Each rule counts the operations of its kinds that touch its range; "once" is 1,
// numbers are compared with that count, which starts at 1. A flush touches
// every range. Errors have the names and the numbers that they have on Linux,
// on every system.
package fault

import (
	"context"
	"fmt"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/ops"
)

// Kind is a set of kinds of operations.
type Kind = ops.Kind

// Kinds.
const (
	Read    = ops.Read
	Write   = ops.Write
	Flush   = ops.Flush
	Trim    = ops.Trim
	Zero    = ops.Zero
	Extents = ops.Extents
	Cache   = ops.Cache
	All     = ops.All
)

// Error is the error of an operation that a rule made fail. Err is found by
// errors.Is; a [block.OffsetError] around it tells the place, unless the operation
// was a flush.
type Error struct {
	Kind     Kind
	Off, Len int64 // bytes, of the operation
	Rule     string
	Err      error
}

func (e *Error) Error() string {
	return fmt.Sprintf("fault: %v: rule %q: %v", ops.Op{Kind: e.Kind, Off: e.Off, Len: e.Len}, e.Rule, e.Err)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Layer returns a layer that follows s, which stays the caller's to change, and
// may be shared by several layers. A nil s lets everything pass.
func Layer(s *Script) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		if s == nil {
			s = &Script{}
		}
		return ops.New(next, s.around), nil
	}
}

// around does an operation unless a rule fires for it, or only a part of it, if it is torn.
func (s *Script) around(ctx context.Context, o ops.Call) error {
	r, fired := s.fire(o.Kind, o.Off, o.Len)
	if !fired {
		return o.Do(ctx, o.Len)
	}
	if r.Panic {
		panic(fmt.Sprintf("fault: %v: rule %q", o.Op, r))
	}
	if part := min(r.Part, o.Len); part > 0 && o.Kind != Flush {
		if err := o.Do(ctx, part); err != nil {
			return err
		}
	}
	err := error(&Error{Kind: o.Kind, Off: o.Off, Len: o.Len, Rule: r.String(), Err: r.Err})
	if o.Kind != Flush {
		// The first byte that failed: a part that was done did not.
		at := max(o.Off, r.Off, o.Off+min(r.Part, o.Len-1))
		err = &block.OffsetError{Off: at, Err: err}
	}
	return err
}
