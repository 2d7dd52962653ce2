package main

// What runs at the ends: one sends, one reads and says how much it was, one asks for names.

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

const block = 256 << 10

// sink reads what comes and answers the end of it with the number of bytes.
func sink(at string) error {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var n uint64
			for b := make([]byte, block); ; {
				k, err := c.Read(b)
				n += uint64(k)
				if err == io.EOF {
					binary.Write(c, binary.BigEndian, n)
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

// send fills a connection for a while, waits until the other end has read all of it, and prints GB a second.
func send(to, long string) error {
	d, err := time.ParseDuration(long)
	if err != nil {
		return err
	}
	var up net.Conn
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the sink may be starting
		if up, err = net.Dial("tcp", to); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return err
	}
	c := up.(*net.TCPConn)
	defer c.Close()
	var sent, got uint64
	begun := time.Now()
	c.SetDeadline(begun.Add(d + 20*time.Second))
	for b := make([]byte, block); time.Since(begun) < d; {
		n, err := c.Write(b)
		sent += uint64(n)
		if err != nil {
			return err
		}
	}
	c.CloseWrite()
	if err := binary.Read(c, binary.BigEndian, &got); err != nil {
		return fmt.Errorf("the other end does not say what it read: %w", err)
	}
	if got != sent {
		return fmt.Errorf("%d bytes sent, %d arrived", sent, got)
	}
	fmt.Printf("%.4f\n", float64(got)/time.Since(begun).Seconds()/1e9)
	return nil
}

// ask asks the resolver of containers for a name, one question after the other.
func ask(name, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	c, err := dns.DialTimeout("udp", "127.0.0.11:53", time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	var took []time.Duration
	for range n {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		begun := time.Now()
		if err := c.WriteMsg(q); err != nil {
			return err
		}
		a, err := c.ReadMsg()
		took = append(took, time.Since(begun))
		if err != nil {
			return err
		}
		if a.Id != q.Id || len(a.Answer) != 1 {
			return fmt.Errorf("%s: not the answer: %v", name, a)
		}
	}
	slices.Sort(took)
	fmt.Printf("%d questions for %s: median %v, p99 %v, slowest %v\n", n, name, took[n/2], took[n*99/100], took[n-1])
	return nil
}
