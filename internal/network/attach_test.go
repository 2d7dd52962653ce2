package network

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"keg/internal/fault"
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

// TestBridgeIsFull: the container whose port would be the 1,024th is told so, and leaves nothing behind.
func TestBridgeIsFull(t *testing.T) {
	s := lab(t)
	attach(t, s, request("first", "bridge"))
	rec, err := s.find(context.Background(), "bridge")
	must(t, err)
	br, err := netlink.LinkByName(rec.Link)
	must(t, err)
	fill(t, uint32(br.Attrs().Index), bridgePorts-2)
	attach(t, s, request("last", "bridge"))
	before := snapshot(t)
	_, err = s.Attach(context.Background(), request("late", "bridge"))
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "network bridge is full: the kernel gives a bridge at most 1023 ports") {
		t.Errorf("the 1,024th port: %v", err)
	}
	if after := snapshot(t); after != before {
		t.Errorf("left by a failed attach:\n%s\nbefore:\n%s", after, before)
	}
	create(t, s, CreateOptions{Name: "other"})
	attach(t, s, request("late", "other"))
}

// fill takes n ports of a bridge with links whose other ends are in a namespace: they all go with it, at once.
func fill(t *testing.T, bridge uint32, n int) {
	r := (&Store{}).startNetNS(netnsOptions{})()
	must(t, r.err)
	host, err := openRtnl()
	must(t, err)
	t.Cleanup(func() {
		r.ns.close()
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if l, err := host.find("full0"); err != nil || l.index == 0 {
				break
			}
		}
		host.close()
	})
	for i := range n {
		v := vethPair{host: fmt.Sprintf("full%d", i), bridge: bridge, netns: r.ns.fd, inside: fmt.Sprintf("full%d", i),
			mac: []byte{2, 0, 0, 9, byte(i >> 8), byte(i)}}
		must(t, host.do(v.message()))
	}
}
