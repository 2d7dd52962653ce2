package seccomp

import (
	"bytes"
	"encoding/json"
	"math/rand"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestAgainstLibseccomp: for every system call that libseccomp knows, on every interface, with arguments around
// those that the policy compares, our filter and libseccomp's give one verdict. Where the two cannot agree
// is said in the test.
func TestAgainstLibseccomp(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("compares the three interfaces of x86")
	}
	if err := exec.Command("/usr/bin/python3", "-c", "import seccomp").Run(); err != nil {
		t.Skip("needs python3-seccomp (scripts/install-test-deps): ", err)
	}
	for name, caps := range map[string][]string{"none": nil, "docker": dockerCaps, "more": append([]string{"CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYS_PTRACE", "CAP_SYS_TIME"}, dockerCaps...)} {
		t.Run(name, func(t *testing.T) {
			p, err := DefaultPolicy(caps)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(caps, "CAP_AUDIT_WRITE") {
				// Two actions for one call whose comparisons overlap: libseccomp's tree loses the second. Ours is
				// held to the policy's own words by TestDefaultPolicyCompilesToItsMeaning.
				p.Syscalls = p.Syscalls[1:]
			}
			agree(t, p)
		})
	}
}

func agree(t *testing.T, p *specs.LinuxSeccomp) {
	ours, err := build(p)
	if err != nil {
		t.Fatal(err)
	}
	theirs, known := libseccomp(t, p)
	values := interesting(p)
	rng := rand.New(rand.NewSource(1))
	calls, verdicts := 0, map[string]bool{}
	for _, abi := range covered() {
		for n := range 620 {
			name, ok := known[abi][strconv.Itoa(n)]
			if !ok {
				continue
			}
			// Under x86 libseccomp lets socketcall and ipc through, by their first argument; we keep socketcall
			// closed, and ipc by the policy's word for it.
			if abi == "x86" && (name == "socketcall" || name == "ipc") {
				continue
			}
			rounds := 1
			if hasArgs(p, name) {
				rounds = 500
			}
			for range rounds {
				c := call{nr: uint32(n), arch: arches[abi]}
				if abi == "x32" {
					c.nr |= 0x40000000
				}
				for i := range c.args {
					c.args[i] = values[rng.Intn(len(values))]
					if abi != "x86_64" {
						c.args[i] &= 1<<32 - 1 // libseccomp looks at no more; we refuse what has more
					}
				}
				calls++
				verdicts[abi+name] = true
				a, b := evaluate(t, ours.Code, c), evaluate(t, theirs, c)
				// A call newer than the policy is to us one that the kernel does not have, as runc makes it, too.
				if a != b && a != noSuchCall {
					t.Errorf("%s %s (%d) %#x: ours %#x, libseccomp's %#x", abi, name, n, c.args, a, b)
					break
				}
			}
		}
	}
	if len(verdicts) < 1000 {
		t.Errorf("only %d system calls were compared", len(verdicts))
	}
	t.Logf("%d system calls, %d calls with arguments", len(verdicts), calls)
}

// libseccomp compiles a policy with the library and tells which numbers it knows.
func libseccomp(t *testing.T, p *specs.LinuxSeccomp) (filter []byte, known map[string]map[string]string) {
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "testdata/libseccomp.py")
	var out, names bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(body), &out, &names
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, names.String())
	}
	if err := json.Unmarshal(names.Bytes(), &known); err != nil {
		t.Fatalf("%v: %s", err, names.String())
	}
	return out.Bytes(), known
}
