package builder

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keg/internal/image"
)

// Each rule with a file that it is about, and one beside it that is fine.
func TestCheckRules(t *testing.T) {
	const user = "\nUSER app\n"
	for rule, c := range map[string]struct{ bad, good string }{
		"StageNameCasing":                {"FROM scratch AS Base", "FROM scratch AS base"},
		"FromAsCasing":                   {"FROM scratch as base", "FROM scratch AS base"},
		"NoEmptyContinuation":            {"FROM scratch\nENV A=1 \\\n\n  B=2", "FROM scratch\nENV A=1 \\\n  B=2"},
		"ConsistentInstructionCasing":    {"FROM scratch\nENV A=1\nEnv B=1", "FROM scratch\nENV A=1"},
		"DuplicateStageName":             {"FROM scratch AS a\nFROM scratch AS a", "FROM scratch AS a\nFROM scratch AS b"},
		"ReservedStageName":              {"FROM scratch AS context", "FROM scratch AS contexts"},
		"JSONArgsRecommended":            {"FROM scratch\nCMD x", "FROM scratch AS s\nSHELL [\"/x\"]\nFROM s\nCMD x"},
		"MaintainerDeprecated":           {"FROM scratch\nMAINTAINER me", "FROM scratch\nLABEL maintainer=me"},
		"UndefinedArgInFrom":             {"FROM scratch${NOPE}", "ARG NOPE\nFROM scratch${NOPE}"},
		"WorkdirRelativePath":            {"FROM scratch\nWORKDIR a", "FROM scratch AS s\nWORKDIR /a\nFROM s\nWORKDIR b"},
		"UndefinedVar":                   {"FROM scratch\nENV A=$NOPE", "FROM known\nARG X\nENV A=$X$PATH$GIVEN"},
		"MultipleInstructionsDisallowed": {"FROM scratch\nCMD [\"a\"]\nCMD [\"b\"]", "FROM scratch AS s\nCMD [\"a\"]\nFROM s\nCMD [\"b\"]"},
		"LegacyKeyValueFormat":           {"FROM scratch\nENV A 1", "FROM scratch\nENV A=1"},
		"InvalidBaseImagePlatform":       {"FROM foreign:1", "FROM known:1"},
		"RedundantTargetPlatform":        {"FROM --platform=$TARGETPLATFORM scratch", "FROM --platform=$BUILDPLATFORM scratch"},
		"SecretsUsedInArgOrEnv":          {"FROM scratch\nENV API_KEY=1", "FROM scratch\nENV KEYBOARD=1 PUBLIC_KEY=2 KEY_FILE=/x"},
		"InvalidDefaultArgInFrom":        {"ARG TAG\nFROM known:${TAG}", "ARG TAG=1\nFROM known:${TAG}"},
		"FromPlatformFlagConstDisallowed": {"FROM --platform=linux/amd64 scratch AS base",
			"FROM --platform=linux/amd64 scratch AS base-amd64"},
		"CopyIgnoredFile":           {"FROM scratch\nCOPY ignored/x /x", "FROM scratch\nCOPY fine /x"},
		"ExposeProtoCasing":         {"FROM scratch\nEXPOSE 80/TCP", "FROM scratch\nEXPOSE 80/tcp"},
		"ExposeInvalidFormat":       {"FROM scratch\nEXPOSE 127.0.0.1:80:80", "FROM scratch\nEXPOSE 80 90-95/udp"},
		"SecretFileCopied":          {"FROM scratch\nCOPY keys /x", "FROM scratch\nCOPY fine /x"},
		"UnpinnedBaseImage":         {"FROM known", "FROM known:1"},
		"PackageCacheInLayer":       {"FROM known:1\nRUN apt-get update && apt-get install -y curl", "FROM known:1\nRUN apt-get install -y curl && rm -rf /var/lib/apt/lists/*\nRUN --mount=type=cache,target=/var/lib/apt/lists apt-get install -y vim"},
		"HeavyContextWithoutIgnore": {"FROM scratch\nCOPY . /x", "FROM scratch\nCOPY fine /x"},
	} {
		t.Run(rule, func(t *testing.T) {
			text := c.bad
			if rule == "InvalidDefaultArgInFrom" {
				text = "ARG TAG\nFROM known:${TAG}"
			}
			given := map[string]*string{}
			if rule == "InvalidDefaultArgInFrom" {
				one := "1"
				given["TAG"] = &one
			}
			if got := check(t, text+user, rule == "HeavyContextWithoutIgnore", given); !slices.Contains(got, rule) {
				t.Errorf("bad: %q finds %v", text, got)
			}
			if got := check(t, c.good+user, false, nil); slices.Contains(got, rule) {
				t.Errorf("good: %q finds %v", c.good, got)
			}
			skipped := "# check=skip=" + rule + "\n" + text + user
			if got := check(t, skipped, rule == "HeavyContextWithoutIgnore", given); slices.Contains(got, rule) {
				t.Errorf("skipped: finds %v", got)
			}
		})
	}
	if got := check(t, "FROM known:1\n", false, nil); !slices.Contains(got, "RootUser") {
		t.Errorf("root: %v", got)
	}
	for _, fine := range []string{"FROM known:1\nUSER 1000:0\n", "FROM elsewhere:1\n"} {
		if got := check(t, fine, false, nil); len(got) != 0 {
			t.Errorf("%q finds %v", fine, got)
		}
	}
}

func check(t *testing.T, text string, heavyContext bool, args map[string]*string) (found []string) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"fine": "x", "ignored/x": "x", "keys/id_rsa": "x", ".dockerignore": "ignored\n"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if heavyContext {
		os.Remove(dir + "/.dockerignore")
		if err := os.Truncate(dir+"/fine", heavy+1); err != nil {
			t.Fatal(err)
		}
	}
	known := func(ref image.Reference, _ image.Platform) (*image.Config, bool) {
		cfg := emptyConfig(image.Host())
		cfg.Config.Env = []string{"GIVEN=1"}
		switch {
		case strings.HasSuffix(ref.Repository, "foreign"):
			cfg.Architecture = "s390x"
		case !strings.HasSuffix(ref.Repository, "known"):
			return nil, false
		}
		return cfg, true
	}
	c, err := Check(t.Context(), Options{Context: dir, Dockerfile: "-", Text: []byte(text), Args: args}, known)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	for _, w := range c.Warnings {
		found = append(found, w.Rule)
		if w.Line < 1 || w.Message == "" || w.Excerpt == "" {
			t.Errorf("%+v", w)
		}
	}
	return found
}
