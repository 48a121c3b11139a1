package supervise

import "context"

// mostAskWaits bounds how many times in a row the question is left out.
const mostAskWaits = 63

// ask asks the server what it did not tell when the device was attached. All connections
// are alive; as long as they stay so, it is the same server. One that does not answer a
// second connection is asked less and less often.
func (k *keeper) ask(st *State) {
	if k.askWaits > 0 {
		k.askWaits--
		return
	}
	t := k.server()
	if t == nil {
		return
	}
	d := k.d
	k.asking = true
	k.start(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, st.Spec.ConnectTimeout)
		defer cancel()
		a, err := t.ask(ctx)
		if err == nil {
			err = st.comparePeer(t.name, a.who)
		}
		return func() {
			k.asking = false
			switch {
			case err != nil:
				d.log.Debug("the server still tells nothing on a second connection", "err", err)
				k.lastWaits = min(2*k.lastWaits+1, mostAskWaits)
				k.askWaits = k.lastWaits
			case len(k.dead()) == 0 && !d.anyDead():
				d.learned(asked{answer: a, alive: true})
			}
		}
	})
}

// server returns the server of all connections, nil if that is not certain, as it is not of
// those that only the kernel has.
func (k *keeper) server() *target {
	name := ""
	for i, s := range k.d.slots {
		if s.file == nil || i > 0 && s.told.Server != name {
			return nil
		}
		name = s.told.Server
	}
	for _, t := range k.d.targets {
		if t.name == name {
			return t
		}
	}
	return nil
}
