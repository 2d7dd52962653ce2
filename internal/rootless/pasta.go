package rootless

// The way out through pasta(1), where it is installed: a process of its own that has the tun device
// instead of the keeper. It ends with the keeper; when it ends before, the built-in way takes over.

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// WayVar is the variable by which a user chooses: pasta, builtin, or nothing for the first that there is.
const WayVar = "KEG_ROOTLESS_NET"

// pastaPatience is how long pasta may take to make its device: it needs some ten milliseconds.
const pastaPatience = 3 * time.Second

// choosePasta is the program to use, or "" for the built-in way, and what to tell a user who will not get what he chose.
func choosePasta(choice string) (program, warning string, err error) {
	switch choice {
	case "builtin":
		return "", "", nil
	case "", "pasta":
	default:
		return "", "", fault.Invalidf("%s=%s is neither pasta nor builtin", WayVar, choice)
	}
	program, err = exec.LookPath("pasta")
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err != nil && choice == "pasta" {
		return "", "pasta is not installed, so containers reach out through keg's relay; install it (Debian: apt install passt)", nil
	}
	return program, "", nil
}

// pastaArgs are those for the namespace at path netns. All addresses are ours: the host's own ones stay the host's when
// they are seen from inside, and the host needs no default route. No port is forwarded, and the gateway is not the
// host's loopback.
func pastaArgs(netns string) []string {
	return strings.Fields("--foreground --quiet --config-net --ipv4-only --interface lo --ns-ifname " + tunName +
		" --address " + tunAddr().String() + " --netmask 30 --gateway " + tunAddr().Next().String() + " --mac-addr 02:6b:65:67:00:01" +
		" --no-map-gw --no-dhcp --no-dhcpv6 --no-ndp --no-ra --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none --no-netns-quit --netns " + netns)
}

// startPasta returns when the way is open; ended is told why it closed. The calling thread is inside the user's network.
func (p place) startPasta(program string) (ended <-chan error, err error) {
	netns, forget, err := p.nameForPasta()
	if err != nil {
		return nil, err
	}
	defer forget()
	if err := pastaRules(); err != nil {
		return nil, fmt.Errorf("make the rules of the way out: %w", err)
	}
	stop := make(chan struct{})
	ended = runPasta(exec.Command(program, pastaArgs(netns)...), stop)
	for limit := time.Now().Add(pastaPatience); time.Now().Before(limit); time.Sleep(time.Millisecond) {
		select {
		case err := <-ended:
			return nil, err
		default:
		}
		if open, err := hasWay(); open || err != nil {
			return ended, err
		}
	}
	close(stop)
	return nil, errors.Join(fmt.Errorf("%s has made no device after %v", program, pastaPatience), <-ended)
}

// nameForPasta gives the namespace a name that pasta may open. Its AppArmor profile (Debian: abstractions/pasta) allows
// /run/user/UID/netns only, so while it starts the name is there, in our own mounts.
func (p place) nameForPasta() (name string, forget func(), err error) {
	uid, _ := linux.OwnIDs("uid_map")
	dir := "/run/user/" + strconv.Itoa(int(uid))
	if !owned(dir, os.Getuid()) {
		return p.net(), func() {}, nil
	}
	dir = filepath.Join(dir, "netns")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	f, err := os.CreateTemp(dir, "keg-")
	if err != nil {
		return "", nil, err
	}
	f.Close()
	forget = func() {
		_ = unix.Unmount(f.Name(), unix.MNT_DETACH)
		os.Remove(f.Name())
	}
	if err := unix.Mount(p.net(), f.Name(), "", unix.MS_BIND, ""); err != nil {
		forget()
		return "", nil, &os.PathError{Op: "mount", Path: f.Name(), Err: err}
	}
	return f.Name(), forget, nil
}

// runPasta runs it in a thread that is in the host's network and stays as long as pasta: the kernel kills a process with
// the thread that started it.
func runPasta(cmd *exec.Cmd, stop <-chan struct{}) <-chan error {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		words := &firstWords{}
		cmd.Stderr, cmd.Dir = words, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			ended <- err
			return
		}
		done := make(chan struct{})
		go func() {
			select {
			case <-stop:
				cmd.Process.Kill()
			case <-done:
			}
		}()
		err := cmd.Wait()
		close(done)
		if err == nil {
			err = errors.New("exit status 0")
		}
		if said := words.String(); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		ended <- fmt.Errorf("%s: %w", cmd.Path, err)
	}()
	return ended
}

// firstWords keeps the beginning of what a program says.
type firstWords struct{ b bytes.Buffer }

func (w *firstWords) Write(p []byte) (int, error) {
	w.b.Write(p[:min(len(p), max(0, 1024-w.b.Len()))])
	return len(p), nil
}

// String is one line, without pasta's complaints that nobody reads the system's log.
func (w *firstWords) String() string {
	var out []string
	for line := range strings.Lines(w.b.String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasSuffix(line, "to syslog") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "; ")
}

// hasWay tells whether the device is there with the default route.
func hasWay() (bool, error) {
	l, err := netlink.LinkByName(tunName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find %s: %w", tunName, err)
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_OIF)
	for _, r := range routes {
		if r.Gw.Equal(tunAddr().Next().AsSlice()) && l.Attrs().Flags&unix.IFF_UP != 0 {
			return true, nil
		}
	}
	return false, err
}

// pastaRules mend the answer to a connection that was refused: pasta up to 2023 sends a reset without the flag that it
// acknowledges, though with the number, and the kernel's TCP goes on asking for two minutes (RFC 9293 3.10.7.3).
//
//	chain first { type filter hook prerouting priority -310
//		iifname "keg0" meta l4proto tcp tcp flags & (syn|rst|ack) == rst tcp flags set flags | ack
//	}
func pastaRules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
	ch := c.AddChain(&nftables.Chain{Name: "first", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-310)})
	flags := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 2}
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: linkName(tunName)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		flags, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0, tcpSyn | tcpRst | tcpAck}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, tcpRst}},
		flags, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xff &^ tcpAck}, Xor: []byte{0, tcpAck}},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: 16}}})
	return c.Flush()
}
