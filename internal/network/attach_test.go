package network

import (
	"testing"
)

func TestContainersReachEachOther(t *testing.T) {
	s := lab(t)
	a := attach(t, s, request("a", "bridge"))
	b := attach(t, s, request("b", "bridge"))
	whoami(t, b.NetNS, 80)
	who, echo, err := ask(a.NetNS, b.ip("bridge").String()+":80", "hello")
	if err != nil || who != a.ip("bridge").String() || echo != "hello" {
		t.Fatalf("who %q echo %q err %v", who, echo, err)
	}
}
