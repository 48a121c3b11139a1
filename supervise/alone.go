package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nbd.example/nbd/kernel"
)

// AttachAlone attaches a kernel device that nobody keeps: there is no state file, no process
// connects it anew, and this one may end. What needs a process, such as TLS, is refused. If
// a device with the same identifier is attached already, kept or not, its state is returned,
// also if spec wants another device; it is an error if it does not suit otherwise.
func (s *Supervisor) AttachAlone(ctx context.Context, spec *Spec) (*State, error) {
	wanted := spec
	spec, err := spec.complete()
	if err != nil {
		return nil, err
	}
	d, end, err := s.begin(ctx, spec.Identifier)
	if err != nil {
		return nil, err
	}
	if d != nil {
		st := d.Status()
		return &st, st.standsIn(wanted)
	}
	defer end()
	st, err := s.other(ctx, spec)
	if err != nil {
		return nil, err
	}
	if st != nil {
		return st, st.standsIn(wanted)
	}
	if st, err = s.attachAlone(ctx, spec); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	s.scan(ctx, st.Index, spec.Client)
	return st, nil
}

// attachAlone makes a new device.
func (s *Supervisor) attachAlone(ctx context.Context, spec *Spec) (*State, error) {
	if spec.Serve != "" {
		return nil, errors.New("what a process serves itself needs that process")
	}
	targets, _, err := s.targets(ctx, spec)
	if err != nil {
		return nil, err
	}
	st := &State{Version: stateVersion, Identifier: spec.Identifier, Spec: *spec, Phase: Unkept}
	peers, err := s.first(ctx, st, targets)
	if err != nil {
		return nil, err
	}
	if peers[0].relay != nil {
		discard(peers)
		return nil, fmt.Errorf("%s: a process that stays is needed, to pass on what the kernel does not take as it comes", peers[0].from.name)
	}
	if err := s.connect(ctx, st, peers); err != nil {
		for _, p := range peers {
			p.destroy()
		}
		return nil, err
	}
	for _, p := range peers {
		p.file.Close() // the kernel has its own
	}
	st.Device, st.Since = st.Index.Path(), time.Now()
	if _, _, err := kernel.SuitRequests(ctx, s.cfg.Kernel, st.Index, maxPayload(peers[0])); err != nil {
		s.log.Warn("long requests will fail", "device", st.Device, "err", err)
	}
	return st, nil
}

// other looks for a device with the identifier of spec that this supervisor does not keep:
// among the files of those who keep devices, and in what the kernel shows.
func (s *Supervisor) other(ctx context.Context, spec *Spec) (*State, error) {
	list, _ := States(s.cfg.Dir) // what cannot be read cannot be compared
	for i := range list {
		st := &list[i]
		if st.Identifier != spec.Identifier || s.stale(st) || !s.foreign(st) && s.left(ctx, st.Index, st.Identifier) {
			continue
		}
		return st, nil
	}
	all, err := s.cfg.Kernel.StatusAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("what is attached already: %w", err)
	}
	for _, a := range all {
		if !a.Connected {
			continue
		}
		info, err := s.cfg.Kernel.Info(a.Index)
		if err != nil || info.PID == 0 || info.Identifier != spec.Identifier || s.left(ctx, a.Index, spec.Identifier) {
			continue
		}
		st := &State{
			Version: stateVersion, Index: info.Index, Device: info.Index.Path(), Identifier: info.Identifier, Phase: Unkept,
			Spec: *spec, Size: info.Size, BlockSize: info.BlockSize, Flags: kernelFlags(0, info.ReadOnly), Shown: true,
		}
		st.Spec.ReadOnly = false // why it is read-only, nobody knows
		return st, nil
	}
	return nil, nil
}

// left is [kernel.Left], which takes no longer than a call may.
func (s *Supervisor) left(ctx context.Context, i kernel.Index, identifier string) bool {
	ctx, cancel := context.WithTimeout(ctx, s.times.call)
	defer cancel()
	return kernel.Left(ctx, s.cfg.Kernel, i, identifier)
}
