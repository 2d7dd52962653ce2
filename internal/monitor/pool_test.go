package monitor

import (
	"bytes"
	"testing"
)

func TestStepsTakeOverTheNetwork(t *testing.T) {
	h := newHouse(t)
	b := h.builder()
	see := func(s Step) string {
		t.Helper()
		var out bytes.Buffer
		s.Key, s.Args = h.key(), sh("readlink /proc/self/ns/net; grep -c extra /etc/hosts")
		if _, err := b.Run(ctx, s, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	first := see(Step{})
	if again := see(Step{}); again != first {
		t.Errorf("a new network for an equal step: %q, %q", first, again)
	}
	if other := see(Step{ExtraHosts: []string{"extra:10.0.0.1"}}); other == first {
		t.Errorf("a step with other hosts got %q", other)
	}
	if none := see(Step{Network: "none"}); none == first {
		t.Errorf("a step without network got %q", none)
	}
	strong := see(Step{Privileged: true})
	if strong == first {
		t.Error("a privileged step took over a network")
	}
	if again := see(Step{}); again == strong {
		t.Error("the network of a privileged step was used again")
	}
}
