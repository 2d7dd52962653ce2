// What a program may not do because the container lacks a capability, in one line.

package cli

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
)

// lastWords passes a program's output on and remembers its end.
type lastWords struct {
	w   io.Writer
	end []byte
}

const wordsKept = 2 << 10

func (l *lastWords) Write(b []byte) (int, error) {
	l.end = append(l.end, b[max(0, len(b)-wordsKept):]...)
	if n := len(l.end) - wordsKept; n > 0 {
		l.end = l.end[:copy(l.end, l.end[n:])]
	}
	return l.w.Write(b)
}

// needs tells by the words of an error message which capability was missing: what programs print
// beside "Operation not permitted" is their name or that of the call.
var needs = []struct {
	capability string
	words      []string
}{
	{"CHOWN", []string{"chown", "chgrp"}},
	{"MKNOD", []string{"mknod"}},
	{"NET_RAW", []string{"ping", "ping6", "arping", "traceroute", "tcpdump", "nmap", "sock_raw", "raw"}},
	{"NET_ADMIN", []string{"rtnetlink", "ip", "ifconfig", "route", "iptables", "ip6tables", "nft", "brctl", "tc"}},
	{"SYS_ADMIN", []string{"mount", "umount", "unshare", "nsenter", "setns", "pivot_root", "swapon", "losetup", "hostname", "sethostname"}},
	{"SYS_CHROOT", []string{"chroot"}},
	{"SYS_TIME", []string{"date", "hwclock", "settimeofday", "adjtimex"}},
	{"SYS_NICE", []string{"renice", "chrt", "setpriority", "sched_setscheduler"}},
	{"SYS_PTRACE", []string{"strace", "ptrace", "gdb"}},
	{"SYS_MODULE", []string{"insmod", "modprobe", "rmmod"}},
	{"SYS_BOOT", []string{"reboot", "halt", "poweroff"}},
	{"SYS_RESOURCE", []string{"ulimit", "setrlimit", "prlimit"}},
	{"SYSLOG", []string{"dmesg", "klogctl"}},
	{"AUDIT_WRITE", []string{"audit", "linux_audit_write_entry", "audit_log_user_message"}},
	{"SETUID", []string{"su", "setuid", "setreuid", "setresuid"}},
	{"SETGID", []string{"setgid", "setgroups", "initgroups", "setregid", "setresgid"}},
	{"SETFCAP", []string{"setcap"}},
	{"NET_BIND_SERVICE", []string{"bind", "bind()"}},
	{"KILL", []string{"kill"}},
	{"IPC_LOCK", []string{"mlock", "mlockall"}},
	{"LINUX_IMMUTABLE", []string{"chattr"}},
}

// explainRefusal is a line for a program that failed for want of a capability, or "". It speaks only when
// the message names something that needs one which the container does not have.
func explainRefusal(end []byte, h *container.HostConfig) string {
	caps, err := ctr.Capabilities(h)
	if err != nil || h.Privileged {
		return ""
	}
	for line := range bytes.Lines(end) {
		text := strings.ToLower(string(line))
		if !tellsRefusal(text) {
			continue
		}
		words := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\r\n:,;'\"[]", r) })
		for _, n := range needs {
			i := slices.IndexFunc(words, func(w string) bool { return slices.Contains(n.words, w[strings.LastIndexByte(w, '/')+1:]) })
			if i >= 0 && !slices.Contains(caps, "CAP_"+n.capability) {
				return fmt.Sprintf("%s was refused because the container lacks CAP_%s%s; --cap-add %s gives it", words[i], n.capability, whyLacking(n.capability, h), n.capability)
			}
		}
	}
	return ""
}

func tellsRefusal(text string) bool {
	return strings.Contains(text, "not permitted") || strings.Contains(text, "permission denied") || strings.Contains(text, "eperm")
}

func (l *lastWords) refused() bool { return tellsRefusal(strings.ToLower(string(l.end))) }

func whyLacking(name string, h *container.HostConfig) string {
	dropped := func(c string) bool { return c == "CAP_"+name || c == name || c == "ALL" }
	without := *h
	without.CapDrop, without.SecurityOpt = nil, nil
	docker, err := ctr.Capabilities(&without)
	switch {
	case slices.ContainsFunc(h.CapDrop, dropped):
		return " (dropped by --cap-drop)"
	case err == nil && slices.Contains(docker, "CAP_"+name):
		return " (not in --cap-profile strict)"
	}
	return ""
}

// listen remembers the end of what the program says where errors go.
func (s *session) listen() *lastWords {
	switch {
	case s.stdio.Err != nil:
		l := &lastWords{w: s.stdio.Err}
		s.stdio.Err = l
		return l
	case s.stdio.Out != nil:
		l := &lastWords{w: s.stdio.Out}
		s.stdio.Out = l
		return l
	}
	return &lastWords{}
}

// tellRefusal prints the line, if there is one to print.
func (a *app) tellRefusal(l *lastWords, code int, h *container.HostConfig) {
	if l == nil || code == 0 || h == nil {
		return
	}
	if why := explainRefusal(l.end, h); why != "" {
		fmt.Fprintln(a.err, "keg:", why)
	}
}
