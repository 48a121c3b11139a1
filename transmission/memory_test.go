package transmission

import "testing"

func TestMemoryIsShared(t *testing.T) {
	all := NewMemory(100)
	a := account{limit: 80, all: all}
	b := account{limit: 80, all: all}
	if !a.room(500) {
		t.Error("the first request of a connection must always be let in")
	}
	a.take(60)
	if a.room(21) {
		t.Error("a connection got more than its own limit")
	}
	if !b.room(500) {
		t.Error("somebody who has nothing must be let in whatever others have")
	}
	b.take(30)
	if b.room(11) {
		t.Error("all together got more than the limit")
	}
	if !b.room(10) {
		t.Error("what is left is refused")
	}
	a.take(-60)
	if !b.room(50) {
		t.Error("what was given back is refused")
	}
	b.take(-30)
	if n := all.Used(); n != 0 {
		t.Errorf("%d bytes are still taken", n)
	}
}
