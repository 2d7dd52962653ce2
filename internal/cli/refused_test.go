package cli

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestExplainRefusal(t *testing.T) {
	strict := &container.HostConfig{SecurityOpt: []string{"cap-profile=strict"}}
	dropped := &container.HostConfig{CapDrop: []string{"CAP_CHOWN"}}
	docker := &container.HostConfig{}
	for _, c := range []struct {
		says string
		host *container.HostConfig
		want string // "" means silence
	}{
		{"mknod: /b: Operation not permitted\n", strict, "mknod was refused because the container lacks CAP_MKNOD (not in --cap-profile strict); --cap-add MKNOD gives it"},
		{"ping: permission denied (are you root?)\n", strict, "CAP_NET_RAW (not in --cap-profile strict)"},
		{"chown: /etc: Operation not permitted\r\n", dropped, "CAP_CHOWN (dropped by --cap-drop)"},
		{"noise\nmount: permission denied (are you root?)\nmore\n", docker, "lacks CAP_SYS_ADMIN; --cap-add SYS_ADMIN"},
		{"RTNETLINK answers: Operation not permitted\n", docker, "CAP_NET_ADMIN"},
		{"/bin/date: can't set date: Operation not permitted\n", docker, "CAP_SYS_TIME"},
		// Had, and refused for another reason; unknown words; no refusal; everything allowed.
		{"mknod: /b: Operation not permitted\n", docker, ""},
		{"chown: /etc: Operation not permitted\n", strict, ""},
		{"cat: /root: Permission denied\n", strict, ""},
		{"mount: no such device\n", docker, ""},
		{"mount: permission denied\n", &container.HostConfig{Privileged: true}, ""},
		{"mount: permission denied\n", &container.HostConfig{CapAdd: []string{"ALL"}}, ""},
		{"", docker, ""},
	} {
		got := explainRefusal([]byte(c.says), c.host)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%q: %q, not %q", c.says, got, c.want)
		}
	}
}

func TestLastWordsAreBounded(t *testing.T) {
	var out strings.Builder
	l := &lastWords{w: &out}
	for _, n := range []int{1, 100, wordsKept - 1, wordsKept, wordsKept + 1, 10 * wordsKept, 3} {
		if m, err := l.Write([]byte(strings.Repeat("x", n-1) + "\n")); m != n || err != nil {
			t.Fatal(m, err)
		}
		if len(l.end) > wordsKept || !strings.HasSuffix(out.String(), string(l.end)) {
			t.Fatalf("%d bytes kept of %d", len(l.end), out.Len())
		}
	}
}
