package main

// The laboratory: a neighbour on a wire, two containers on a network, a sink of bytes in each place.

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

const ours, theirs = "198.51.100.1", "198.51.100.2"

type lab struct {
	keg, dir, self string
	started        []*exec.Cmd
	from           string // the network namespace of the container that asks
}

func newLab(keg string) (*lab, error) {
	path, err := filepath.Abs(keg)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kn") // short, for the sockets
	if err != nil {
		return nil, err
	}
	l := &lab{keg: path, dir: dir, self: filepath.Join(dir, "netbench")}
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	return l, os.WriteFile(l.self, b, 0o755)
}

// do runs keg with a root of its own.
func (l *lab) do(args ...string) (string, error) {
	cmd := exec.Command(l.keg, append([]string{"--root", l.dir + "/root", "--run-root", l.dir + "/run"}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("keg %s: %w: %s", strings.Join(args, " "), err, &errs)
	}
	return strings.TrimSpace(string(out)), nil
}

func (l *lab) close() {
	l.do("rm", "-f", "box", "neighbour")
	l.do("network", "rm", "lab")
	for _, c := range l.started {
		c.Process.Kill()
		c.Wait()
	}
	os.RemoveAll(l.dir)
}

// start begins a program that ends with this one, in a network namespace of its own or in the host's.
func (l *lab) start(flags uintptr, argv ...string) (*exec.Cmd, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l.started = append(l.started, cmd)
	return cmd, nil
}

func (l *lab) furnish() ([]*row, error) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return nil, err
	}
	far, err := l.wire()
	if err != nil {
		return nil, err
	}
	if _, err := l.start(0, l.self, "sink", ours+":7000"); err != nil {
		return nil, err
	}
	if _, err := l.do("network", "create", "lab"); err != nil {
		return nil, err
	}
	at := []string{"run", "-d", "--network", "lab", "-v", l.self + ":/netbench:ro", "--entrypoint", "/netbench"}
	if _, err := l.do(append(at, "--name", "box", "-p", "7001:7000", "-p", "127.0.0.1:7002:7000", "keg/shell", "sink", ":7000")...); err != nil {
		return nil, err
	}
	if _, err := l.do(append(at, "--name", "neighbour", "keg/shell", "sink", ":7000")...); err != nil {
		return nil, err
	}
	seen, err := l.do("inspect", "-f", "{{.NetworkSettings.Networks.lab.IPAddress}}", "box")
	if err != nil {
		return nil, err
	}
	pid, err := l.do("inspect", "-f", "{{.State.Pid}}", "neighbour")
	if err != nil {
		return nil, err
	}
	l.from = "/proc/" + pid + "/ns/net"
	return []*row{
		{name: "bare", aim: 100, netns: far, to: ours + ":7000"},
		{name: "bridge", aim: 95, netns: l.from, to: seen + ":7000"},
		{name: "published", aim: 90, netns: far, to: ours + ":7001"},
		{name: "loopback", aim: 40, netns: "/proc/self/ns/net", to: "127.0.0.1:7002"},
	}, nil
}

// wire makes another host: a namespace with a pair of veths to this one.
func (l *lab) wire() (netns string, err error) {
	cmd, err := l.start(syscall.CLONE_NEWNET, "sleep", "infinity")
	if err != nil {
		return "", err
	}
	pid := cmd.Process.Pid
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "wired", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(pair); err != nil {
		return "", err
	}
	link, err := netlink.LinkByName("wire")
	if err != nil {
		return "", err
	}
	addr, err := netlink.ParseAddr(ours + "/24")
	if err != nil {
		return "", err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return "", err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return "", err
	}
	netns = "/proc/" + strconv.Itoa(pid) + "/ns/net"
	for _, c := range []string{"addr add " + theirs + "/24 dev wired", "link set wired up"} {
		if out, err := exec.Command("nsenter", append([]string{"--net=" + netns, "ip"}, strings.Fields(c)...)...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("ip %s: %w: %s", c, err, out)
		}
	}
	return netns, nil
}

// measure sends for a while and tells how many GB a second arrived.
func (l *lab) measure(netns, to string, long time.Duration) (float64, error) {
	out, err := exec.Command("nsenter", "--net="+netns, l.self, "send", to, long.String()).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

// names asks for a name a thousand times, one question after the other.
func (l *lab) names() error {
	out, err := exec.Command("nsenter", "--net="+l.from, l.self, "ask", "box.", "1000").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	_, err = os.Stdout.Write(out)
	return err
}
