// The variables of a build: an ordered environment, build arguments, platforms,
// proxies, the epoch.
package builder

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"keg/internal/dockerfile"
	"keg/internal/fault"
	"keg/internal/image"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ is a list of K=V, each key once, in the order of first setting. It is a
// shell.EnvGetter.
type environ []string

func (e environ) index(key string) int {
	return slices.IndexFunc(e, func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return k == key
	})
}

func (e environ) Get(key string) (string, bool) {
	if i := e.index(key); i >= 0 {
		_, v, _ := strings.Cut(e[i], "=")
		return v, true
	}
	return "", false
}

func (e environ) Keys() []string {
	keys := make([]string, len(e))
	for i, kv := range e {
		keys[i], _, _ = strings.Cut(kv, "=")
	}
	return keys
}

// with returns e with key set; e itself is not changed.
func (e environ) with(key, value string) environ {
	if i := e.index(key); i >= 0 {
		e = slices.Clone(e)
		e[i] = key + "=" + value
		return e
	}
	return append(slices.Clip(e), key+"="+value)
}

var _ shell.EnvGetter = environ(nil)

// maxExpansion bounds what the variables of one word may add to it: a variable made of
// variables doubles with every line.
const maxExpansion = 1 << 20

// rationed is an environment that gives out so many bytes.
type rationed struct {
	environ
	left int
}

func (r *rationed) Get(key string) (string, bool) {
	v, ok := r.environ.Get(key)
	if r.left -= len(v); r.left < 0 {
		return "", ok
	}
	return v, ok
}

// expand replaces the variables of a word.
func expand(lex *shell.Lex, word string, env environ) (string, error) {
	words, err := expandWith(env, func(r *rationed) ([]string, error) {
		w, _, err := lex.ProcessWord(word, r)
		return []string{w}, err
	})
	if err != nil {
		return "", err
	}
	return words[0], nil
}

func expandWith(env environ, process func(*rationed) ([]string, error)) ([]string, error) {
	r := &rationed{env, maxExpansion}
	words, err := process(r)
	if r.left < 0 {
		return nil, fault.Invalidf("variables expand to more than the %d bytes allowed", maxExpansion)
	}
	return words, fault.As(fault.Invalid, err)
}

// argument is an ARG that a stage declared; Value is nil when it has none.
type argument struct {
	Key   string
	Value *string
}

// buildArgs resolves --build-arg: a name without value takes the caller's, if it has one.
func buildArgs(o Options) map[string]string {
	args := map[string]string{}
	for k, v := range o.Args {
		if v != nil {
			args[k] = *v
		} else if e, ok := o.Env[k]; ok {
			args[k] = e
		}
	}
	if e := o.Env["SOURCE_DATE_EPOCH"]; e != "" {
		if _, ok := args["SOURCE_DATE_EPOCH"]; !ok {
			args["SOURCE_DATE_EPOCH"] = e
		}
	}
	return args
}

// platformArgs are the variables of the global scope that need no ARG before FROM.
func platformArgs(build, target image.Platform, stage string, given map[string]string) environ {
	if stage == "" {
		stage = "default"
	}
	var env environ
	for _, kv := range [...][2]string{
		{"BUILDPLATFORM", image.FormatPlatform(build)}, {"BUILDOS", build.OS}, {"BUILDOSVERSION", build.OSVersion},
		{"BUILDARCH", build.Architecture}, {"BUILDVARIANT", argVariant(build)},
		{"TARGETPLATFORM", image.FormatPlatform(target)}, {"TARGETOS", target.OS}, {"TARGETOSVERSION", target.OSVersion},
		{"TARGETARCH", target.Architecture}, {"TARGETVARIANT", argVariant(target)}, {"TARGETSTAGE", stage},
	} {
		v := kv[1]
		if g, ok := given[kv[0]]; ok {
			v = g
		}
		env = env.with(kv[0], v)
	}
	return env
}

// argVariant hides arm64's only variant, as Docker's normal form does.
func argVariant(p image.Platform) string {
	if p.Architecture == "arm64" && p.Variant == "v8" {
		return ""
	}
	return p.Variant
}

// globalArgs evaluates the ARGs before the first FROM.
func globalArgs(env environ, file *dockerfile.File, lex *shell.Lex, given map[string]string) (environ, error) {
	for _, c := range file.Args {
		for _, a := range c.Args {
			v, has := given[a.Key]
			if !has && a.Value != nil {
				expanded, err := expand(lex, *a.Value, env)
				if err != nil {
					return nil, file.At(c.Location(), err)
				}
				v, has = expanded, true
			}
			if has {
				env = env.with(a.Key, v)
			}
		}
	}
	return env, nil
}

// proxyEnv is the environment that proxy arguments give to RUN without being declared:
// they are no part of the key nor of the history.
func proxyEnv(given map[string]string) []string {
	var env []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, k := range slices.Sorted(maps.Keys(given)) {
			if v := given[k]; v != "" && strings.EqualFold(k, name) {
				env = append(env, name+"="+v, strings.ToLower(name)+"="+v)
				break
			}
		}
	}
	return env
}

// parseEpoch reads SOURCE_DATE_EPOCH; "" is none.
func parseEpoch(s string) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return nil, fault.Invalidf("invalid SOURCE_DATE_EPOCH %q: want seconds since 1970", s)
	}
	t := time.Unix(n, 0).UTC()
	return &t, nil
}

// argHistory is an ARG as the history tells it.
func argHistory(args []argument) string {
	s := "ARG"
	for _, a := range args {
		s += " " + a.Key
		if a.Value != nil {
			s += "=" + *a.Value
		}
	}
	return s
}

// runHistory is the command line of a RUN as the history tells it, with the
// arguments that were in force.
func runHistory(args []string, declared []argument, env environ) string {
	var kvs []string
	at := map[string]int{}
	for _, a := range declared {
		v, ok := env.Get(a.Key)
		if !ok && a.Value != nil {
			v = *a.Value
		}
		if i, seen := at[a.Key]; seen {
			kvs[i] = a.Key + "=" + v
			continue
		}
		at[a.Key] = len(kvs)
		kvs = append(kvs, a.Key+"="+v)
	}
	if len(kvs) > 0 {
		kvs = append([]string{"|" + strconv.Itoa(len(kvs))}, kvs...)
	}
	return strings.Join(append(kvs, args...), " ")
}
