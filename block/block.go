// Package block is the seam between the protocol and the bytes. It knows
// nothing of NBD.
//
// # Concepts
//
// A [Backend] is where bytes live: a file, memory, an object store. A [Layer]
// changes bytes or behaviour on the way to the next one: copy-on-write, a delay,
// an offset. Authors of both write small types with the methods they can
// honestly offer: reading is a must, everything else is an optional interface
// ([Writer], [Flusher], [Trimmer], [ZeroWriter], [Extenter], [Cacher], [Grower],
// [Direct]).
//
// Users of a back end never see it. They hold a [*Device], which [New] makes
// from a Backend once, and which alone
//
//   - checks range, alignment and flags, so that an author may rely on valid calls;
//   - reads, modifies and writes where the back end needs alignment;
//   - emulates what can be emulated (zeroes by writing, FUA by flushing, extents
//     as "all data", caching by reading) and refuses what cannot;
//   - keeps neighbours in one block apart while one of them is modified;
//   - remembers that a flush has failed, and lets no later success hide it.
//
// A layer holds the next Device in a named field and forwards by hand. What it
// forgets to forward is lost, and never leaks past it: a Trim that reached
// behind a copy-on-write layer would discard the base image.
//
// What a device can do is data: its [Caps]. Each ability has a [Level]. The zero
// Level, [Auto], lets New decide by the methods that are there; a layer can
// also refuse an ability that it technically has ([None]). A promise without its
// method is refused by New.
//
// # Durability
//
// A write is stable once a Flush that began after the write returned has
// returned without error, or when the write itself carried [FUA] and returned
// without error. Nothing else makes it stable.
package block

import (
	"context"
	"errors"
)

// Backend is where bytes live. All methods may be called concurrently. Offsets
// and lengths are in bytes; New's Device has checked them against Caps before
// any method is called, and never calls a method that Caps denies, nor one with
// a length of 0.
type Backend interface {
	// Caps is asked once, by New.
	Caps() Caps
	// ReadAt fills all of p from off, or returns an error; then the contents of
	// p are undefined. It must not keep p.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Close gives everything back. It is called once, after the last other call
	// has returned. It does not promise to make writes stable.
	Close() error
}

// Writer is a Backend that can be written. WriteAt writes all of p at off or
// returns an error; then any part of the range may hold old or new bytes. It must
// not keep or change p. The only flag is FUA, and only if Caps.FUA is Native.
type Writer interface {
	WriteAt(ctx context.Context, p []byte, off int64, f Flags) error
}

// Flusher makes all writes stable that had returned before Flush was called. An
// error breaks the device, unless it is that of ctx, which ended first: then the
// back end must tell the next Flush what it did not wait for.
type Flusher interface {
	Flush(ctx context.Context) error
}

// Trimmer lets go of a range: its contents become undefined until written
// again. It may do less than asked. The only flag is FUA, and only if Caps.FUA
// is Native.
type Trimmer interface {
	Trim(ctx context.Context, off, n int64, f Flags) error
}

// ZeroWriter makes a range read as zeroes. Flags: FUA (only if Caps.FUA is
// Native), NoHole (the range must stay allocated), FastZero (only if Caps.FastZero
// is Native: if it cannot be done faster than by writing, return an error that is
// [errors.ErrUnsupported] at once, with nothing changed). Without FastZero it may
// return errors.ErrUnsupported, with nothing changed, to have Device write zeroes.
type ZeroWriter interface {
	WriteZeroes(ctx context.Context, off, n int64, f Flags) error
}

// Extenter tells what is allocated. It calls add with consecutive extents that
// begin at off, until they cover n bytes or add returns false; the last one may
// reach beyond, and it may stop early after the first. Their lengths are multiples
// of BlockSize.Minimum. The only flag is One: the caller wants only the first.
type Extenter interface {
	Extents(ctx context.Context, off, n int64, f Flags, add func(Extent) bool) error
}

// Grower is a Backend that others may make larger while it is open: a file, a disk.
type Grower interface {
	// Remeasure returns the size that is there now, in bytes. From then on the
	// other methods must take ranges up to there; those that they took before they
	// still take, also if it has become smaller. It changes nothing by itself.
	Remeasure() (int64, error)
}

// Cacher brings a range nearer, as a hint.
type Cacher interface {
	Cache(ctx context.Context, off, n int64) error
}

// Direct is what a back end offers when an answer needs no waiting: the one
// door for the server's fast path. Correctness never needs it. A layer does not
// have it unless it can answer for itself.
type Direct interface {
	// TryRead fills all of p now, or reports false. It must not wait for a disk.
	TryRead(p []byte, off int64) bool
	// TryWrite accepts all of p now, or reports false; then any part may have
	// been written, and the caller writes all of it again by WriteAt.
	TryWrite(p []byte, off int64) bool
	// Range returns a span that a plain socket can take without a copy through
	// this process, and now: every byte of it is in memory. With onlyData it
	// reports false also where there might be holes, which the caller would
	// rather look for by Extents.
	Range(off, n int64, onlyData bool) (Span, bool)
	// Avoid is called when a span could not be sent whole. From then on Range
	// must not offer those bytes, so that whoever asks again reads them, and gets
	// the error.
	Avoid(s Span)
}

// Span is a stretch of a file, for sendfile and its like. It is valid as long
// as its device is open.
type Span struct {
	FD  uintptr
	Off int64 // bytes, in the file
	Len int64 // bytes
	// address is where a mapping of the bytes lies, or 0. Only the kernel may
	// touch them: if the file has become smaller, or its disk fails, it says so by
	// an error, while this process would be ended by a signal. Hence it is no
	// []byte, and never becomes one.
	address uintptr
}

// MappedSpan describes n bytes of a mapping.
func MappedSpan(address uintptr, n int64) Span { return Span{Len: n, address: address} }

// Address returns where the mapping lies, or 0 if s is a stretch of a file. It
// is for system calls alone.
func (s Span) Address() uintptr { return s.address }

// Advance returns s without its first n bytes.
func (s Span) Advance(n int64) Span {
	s.Off += n
	s.Len -= n
	if s.address != 0 {
		s.address += uintptr(n)
	}
	return s
}

// Mapper is a Direct that can also offer bytes by a mapping. It does so only for
// what is known to be in memory and asked for again and again: the first touch
// of a page costs more than a read, and one that is not there makes the socket
// wait for the disk.
type Mapper interface {
	Direct
	Mapped(off, n int64) (Span, bool)
}

// Layer puts a back end over next. The new back end owns next and closes it.
type Layer func(next *Device) (Backend, error)

// Flags modify an operation.
type Flags uint8

// Flags.
const (
	FUA      Flags = 1 << iota // return only when the effect is stable
	NoHole                     // WriteZeroes: keep the range allocated
	FastZero                   // WriteZeroes: fail at once rather than be slow
	One                        // Extents: only the first is wanted
)

// State is what is known of an extent. Both bits clear: it may hold data.
type State uint8

// States.
const (
	Hole State = 1 << iota // nothing is allocated
	Zero                   // reads as zeroes
)

// Extent is a stretch of a device with one state.
type Extent struct {
	Length int64 // bytes, never 0
	State  State
	// Depth says in which layer the bytes are allocated: 0 in none, 1 in the
	// topmost, 2 in the one below. Only meaningful if Caps.Depth is set.
	Depth uint32
}

// Level says how an ability is there.
type Level uint8

// Levels.
const (
	Auto     Level = iota // New decides: Native where the method is there, else Emulated where possible, else None
	None                  // not at all
	Emulated              // by Device, from other methods
	Native                // by the back end
)

// BlockSize says in which units a back end wants to be used, in bytes.
type BlockSize struct {
	Minimum   int64 // every offset and length that the back end sees is a multiple; 0 means 1; a power of two up to 64 KiB
	Preferred int64 // what is efficient; 0 means 4096
	Maximum   int64 // the longest single ReadAt or WriteAt that the back end sees; 0 means no limit
}

// Caps says what a device can do.
type Caps struct {
	Size      int64 // bytes; a multiple of BlockSize.Minimum; see Device.Grow
	BlockSize BlockSize
	ReadOnly  bool // set by New if there is no Writer
	// Rotational says that the order of requests matters to its speed.
	Rotational bool
	// MultiConn says that clients may spread over several connections that
	// share this device: what one wrote another reads, and a flush covers all.
	MultiConn bool
	// FreeFlush says that Flush never waits, because there is nothing below that
	// writes would have to reach. Only a back end with Direct is believed.
	FreeFlush bool
	// Depth says that extents carry their allocation depth.
	Depth bool

	Flush    Level
	FUA      Level // Native must be declared; Emulated by Flush
	Trim     Level
	Zero     Level
	FastZero Level // Emulated: always refused, at once
	Extents  Level
	Cache    Level

	// Instance names the contents. Two devices with the same Instance, open at
	// the same time or one after the other, hold the same bytes. Left empty, New
	// makes one up, which says that the contents are new.
	Instance string
}

// Errors that a Device returns by itself. Others come from the back end.
var (
	// ErrRange is returned for a range that is not inside the device.
	ErrRange = errors.New("out of range")
	// ErrReadOnly is returned for a change to a device that cannot be changed.
	ErrReadOnly = errors.New("read-only device")
	// ErrNotStable wraps the error of a failed flush, and is returned for every
	// later write and flush: data that was accepted may be lost.
	ErrNotStable = errors.New("an earlier flush failed, accepted data may be lost")
)

// OffsetError tells where an operation failed.
type OffsetError struct {
	Off int64 // bytes from the start of the device
	Err error
}

func (e *OffsetError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *OffsetError) Unwrap() error { return e.Err }
