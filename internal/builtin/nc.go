// nc connects to a port or listens on one, TCP or UDP, and copies both ways.
package builtin

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// nc [-u] [-w SECONDS] HOST PORT, or nc -l [-u] -p PORT.
func nc(name string, args []string) int {
	var udp, listen bool
	port, wait := "", 0
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&udp, "u", false, "UDP")
		f.BoolVar(&listen, "l", false, "listen")
		f.StringVar(&port, "p", "", "port to listen on")
		f.IntVar(&wait, "w", 0, "seconds of silence after which to end")
	})
	if !ok {
		return 2
	}
	idle := time.Duration(wait) * time.Second
	var err error
	switch {
	case listen && udp:
		err = listenUDP(port)
	case listen:
		err = listenTCP(port, idle)
	case f.NArg() == 2:
		network := "tcp"
		if udp {
			network = "udp"
		}
		var c net.Conn
		if c, err = net.Dial(network, net.JoinHostPort(f.Arg(0), f.Arg(1))); err == nil {
			err = both(c, idle)
		}
	default:
		fmt.Fprintf(os.Stderr, "usage: %s [-u] [-w SECONDS] HOST PORT | -l [-u] -p PORT\n", name)
		return 2
	}
	if err != nil {
		return fail(name, err)
	}
	return 0
}

// both sends standard input and prints what comes back until the peer ends or, after
// the input's end, nothing came for the idle time.
func both(c net.Conn, idle time.Duration) error {
	defer c.Close()
	go func() {
		io.Copy(c, os.Stdin)
		if t, ok := c.(*net.TCPConn); ok {
			t.CloseWrite()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		if idle > 0 {
			c.SetReadDeadline(time.Now().Add(idle))
		}
		n, err := c.Read(buf)
		os.Stdout.Write(buf[:n])
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
	}
}

func listenTCP(port string, idle time.Duration) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	c, err := l.Accept()
	l.Close()
	if err != nil {
		return err
	}
	return both(c, idle)
}

// listenUDP prints what arrives and answers each packet with itself.
func listenUDP(port string) error {
	c, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		os.Stdout.Write(buf[:n])
		c.WriteTo(buf[:n], from)
	}
}
