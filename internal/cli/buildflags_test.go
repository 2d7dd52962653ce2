package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"keg/internal/builder"
)

// buildxFlags are those of docker buildx build (docs/reference/buildx_build.md at 461836b) and the hidden ones of its
// commands/build.go, each with a word that it takes.
var buildxFlags = strings.Fields(`--add-host=a:1.2.3.4 --allow=network.host --annotation=a=b --attest=type=provenance --build-arg=a=b --build-context=a=. --builder=default
	--cache-from=x --cache-to=type=inline --call=check --cgroup-parent=/x --check --debug -D --file=x -f=x --iidfile=x --label=a=b --load --metadata-file=x --network=none
	--no-cache --no-cache-filter=x --output=x -o=x --platform=linux/amd64 --policy=filename=x --progress=plain --provenance=false --pull --push --quiet -q
	--resource=memory=1g --sbom=false --secret=id=x,env=HOME --shm-size=1m --ssh=default --tag=x -t=x --target=x --ulimit=nofile=1
	--memory=1g -m=1g --memory-swap=-1 --cpu-shares=1 -c=1 --cpu-period=1 --cpu-quota=1 --cpuset-cpus=0 --cpuset-mems=0 --compress --isolation=default --security-opt=x
	--squash --rm --force-rm`)

func TestBuildKnowsAllFlags(t *testing.T) {
	for _, arg := range buildxFlags {
		r := keg(t, &fake{built: &builder.Result{}, checked: &builder.Checked{}}, "build", arg, t.TempDir())
		if strings.Contains(r.err, "unknown") || strings.Contains(r.err, "Usage:") {
			t.Errorf("%s: %s", arg, r.err)
		}
		for _, name := range []string{"--policy", "--squash", "--security-opt"} {
			if strings.HasPrefix(arg, name+"=") || arg == name {
				if want := "ERROR: " + name + " is not supported: "; r.code != 1 || !strings.HasPrefix(r.err, want) {
					t.Errorf("%s: exit %d, %q", arg, r.code, r.err)
				}
			}
		}
	}
}

func TestBuildLimits(t *testing.T) {
	f := &fake{built: &builder.Result{ConfigID: digest.Digest(someDigest)}}
	dir := t.TempDir()
	keg(t, f, "build", "-q", "--resource", "memory=2g", "--resource", "memory-swap=-1", "-c", "7", "--cpu-quota=5", "--resource", "cpu-period= 9", "--cpuset-cpus", "0-1",
		"--resource", "cpuset-mems=0", "--cgroup-parent", "/team", "--isolation", "default", "--disable-content-trust", dir).want(t, 0, someDigest+"\n", "")
	want := builder.Limits{Memory: 2 << 30, MemorySwap: -1, CPUShares: 7, CPUPeriod: 9, CPUQuota: 5, CpusetCpus: "0-1", CpusetMems: "0", CgroupParent: "/team"}
	if f.build.Limits != want {
		t.Errorf("%+v", f.build.Limits)
	}
	for args, want := range map[string]string{
		"--resource memory":             `invalid argument "memory" for "--resource" flag: invalid resource "memory", expected key=value`,
		"--resource gpus=1":             `unknown resource "gpus": want memory,`,
		"--memory lots":                 `invalid value "lots" for resource memory`,
		"--builder mine":                `no builder "mine" found: keg has one, "default", which needs not be created`,
		"--disable-content-trust=false": `ERROR: --disable-content-trust is not supported: keg verifies no signatures`,
		"--isolation hyperv":            `ERROR: --isolation is not supported`,
		"--policy x --squash":           `ERROR: --policy is not supported: keg evaluates no build policies`,
	} {
		if r := keg(t, f, append(append([]string{"build"}, strings.Fields(args)...), dir)...); r.code == 0 || !strings.Contains(r.err, want) {
			t.Errorf("%s: exit %d, %q", args, r.code, r.err)
		}
	}
	keg(t, f, "build", "-q", "-o", dir+"/x", "--load", dir).want(t, 0, someDigest+"\n", "")
	if o := f.request.Outputs; len(o) != 2 || o[1].Type != "image" {
		t.Errorf("%+v", o)
	}
}

func TestBuildxWords(t *testing.T) {
	f := &fake{built: &builder.Result{ConfigID: digest.Digest(someDigest)}}
	for _, words := range [][]string{{"buildx", "build"}, {"buildx", "b"}, {"builder", "build"}, {"image", "build"}} {
		keg(t, f, append(words, "-q", "--builder", "default", t.TempDir())...).want(t, 0, someDigest+"\n", "")
	}
	if r := keg(t, f, "buildx", "version"); !strings.HasPrefix(r.out, "keg v") || len(strings.Fields(r.out)) < 2 {
		t.Errorf("%q", r.out)
	}
	if r := keg(t, f, "buildx", "inspect", "--bootstrap"); r.code != 0 || !strings.HasPrefix(r.out, "Name:") || !strings.Contains(r.out, "\nStatus:           running\n") ||
		!strings.Contains(r.out, "\nPlatforms:        linux/") {
		t.Errorf("%q", r.out)
	}
	if r := keg(t, f, "buildx", "ls"); !strings.HasPrefix(r.out, "NAME/NODE     DRIVER/ENDPOINT   STATUS    BUILDKIT") || !strings.Contains(r.out, "\ndefault*      keg") || !strings.Contains(r.out, "\n \\_ default    \\_ default") {
		t.Errorf("%q", r.out)
	}
	keg(t, f, "buildx", "ls", "--format", "{{.Name}} {{.DriverEndpoint}} {{.Status}}").want(t, 0, "default keg \ndefault default running\n", "")
	keg(t, f, "buildx", "use", "default").want(t, 0, "", "")
	keg(t, f, "buildx", "use", "mine").want(t, 1, "", "ERROR: no builder \"mine\" found: keg has one, \"default\", which needs not be created\n")
	if r := keg(t, f, "buildx", "bake"); r.code == 0 || !strings.Contains(r.err, "unknown command: docker buildx bake") && !strings.Contains(r.err, "unknown command: keg buildx bake") {
		t.Errorf("%+v", r)
	}
}

// Keys of files answer as an agent does, and cannot be taken out.
func TestBuildAgentOfKeys(t *testing.T) {
	dir := t.TempDir()
	key := func(name, passphrase string) (string, ssh.PublicKey) {
		pub, priv, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		var block *pem.Block
		if passphrase == "" {
			block, err = ssh.MarshalPrivateKey(priv, name)
		} else {
			block, err = ssh.MarshalPrivateKeyWithPassphrase(priv, name, []byte(passphrase))
		}
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		os.WriteFile(file, pem.EncodeToMemory(block), 0o600)
		p, _ := ssh.NewPublicKey(pub)
		return file, p
	}
	one, public := key("one", "")
	two, _ := key("two", "")
	locked, _ := key("locked", "secret")
	other := filepath.Join(dir, "other")
	os.WriteFile(other, []byte("no key"), 0o600)
	f := &fake{built: &builder.Result{ConfigID: digest.Digest(someDigest)}}
	keg(t, f, "build", "-q", "--ssh", "default="+one+","+two, dir).want(t, 0, someDigest+"\n", "")
	c, err := f.build.SSH["default"]()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a := agent.NewClient(c)
	if keys, err := a.List(); err != nil || len(keys) != 2 || keys[0].Comment != one {
		t.Errorf("%v %v", keys, err)
	}
	if sig, err := a.Sign(public, []byte("words")); err != nil || public.Verify([]byte("words"), sig) != nil {
		t.Errorf("%v %v", sig, err)
	}
	if a.RemoveAll() == nil || a.Remove(public) == nil || a.Lock([]byte("x")) == nil {
		t.Error("the build changed the agent")
	}
	if keys, err := a.List(); err != nil || len(keys) != 2 {
		t.Errorf("afterwards %v %v", keys, err)
	}
	for arg, want := range map[string]string{
		"default=" + locked:        "has a passphrase; add it to an agent",
		"default=" + other:         other + " is neither the socket of an agent nor a private key",
		"default=" + dir + "/none": "no such file",
		"x":                        "SSH_AUTH_SOCK is not set",
	} {
		if r := keg(t, f, "build", "-q", "--ssh", arg, dir); r.code != 1 || !strings.Contains(r.err, "ERROR: invalid --ssh ") || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", arg, r)
		}
	}
	if r := keg(t, f, "build", "--ssh", "a="+one, "--ssh", "a="+two, dir); r.code != 1 || !strings.Contains(r.err, "there are two of that name") {
		t.Errorf("%+v", r)
	}
}
