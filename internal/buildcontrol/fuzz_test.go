package buildcontrol

import (
	"strings"
	"testing"

	"keg/internal/grpc"
)

func pairs(n int, kv ...string) (b []byte) {
	for i := 0; i < len(kv); i += 2 {
		b = grpc.AppendMessage(b, n, grpc.AppendText(grpc.AppendText(nil, 1, kv[i]), 2, kv[i+1]))
	}
	return b
}

func TestParseSolve(t *testing.T) {
	b := grpc.AppendText(grpc.AppendText(grpc.AppendText(nil, 1, "ref"), 5, "session"), 6, "dockerfile.v0")
	b = append(b, pairs(7, "target", "t", "no-cache", "")...)
	b = append(b, pairs(10, "in", "definition")...)
	b = grpc.AppendMessage(b, 8, grpc.AppendMessage(grpc.AppendMessage(nil, 4, append(grpc.AppendText(nil, 1, "local"), pairs(2, "dest", "d")...)), 5, grpc.AppendText(nil, 1, "registry")))
	old := append(grpc.AppendText(b, 3, "moby"), pairs(4, "name", "x")...)
	s, err := ParseSolve(old)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := s.Attrs["no-cache"]; s.Ref != "ref" || s.Session != "session" || s.Frontend != "dockerfile.v0" || s.Attrs["target"] != "t" || !ok || v != "" || string(s.Inputs["in"]) != "definition" ||
		len(s.CacheTo) != 1 || s.CacheTo[0].Attrs["dest"] != "d" || len(s.CacheFrom) != 1 || len(s.Exporters) != 1 || s.Exporters[0].Type != "moby" || s.Exporters[0].Attrs["name"] != "x" {
		t.Errorf("%+v", s)
	}
	s, err = ParseSolve(grpc.AppendMessage(old, 13, grpc.AppendText(nil, 1, "oci")))
	if err != nil || len(s.Exporters) != 1 || s.Exporters[0].Type != "oci" {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := ParseSolve(append(b, []byte(strings.Repeat(string(grpc.AppendText(nil, 9, "x")), maxEntries+1))...)); err == nil {
		t.Error("a list without end")
	}
	if _, err := ParseSolve(grpc.AppendText(nil, 1, strings.Repeat("r", 257))); err == nil {
		t.Error("a long name")
	}
}

// TestSource: the definition that stands for a reference is read as it was written.
func TestSource(t *testing.T) {
	def := Source("keg-reference://x")
	op, unpacked, err := ParseSource(def)
	if err != nil || unpacked || op.Identifier != "keg-reference://x" || IsEmpty(def) || !IsEmpty(nil) {
		t.Errorf("%+v %v", op, err)
	}
	for number, kind := range map[int]string{2: "exec", 5: "build", 6: "merge", 7: "diff"} {
		if _, err := ParseSources(grpc.AppendMessage(def, 1, grpc.AppendMessage(nil, number, ""))); err == nil || !strings.Contains(err.Error(), kind) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, unpacked, err := ParseSource(grpc.AppendMessage(def, 1, grpc.AppendMessage(nil, 4, ""))); err != nil || !unpacked {
		t.Errorf("an archive: %v %v", unpacked, err)
	}
	if _, _, err := ParseSource(append(def, Source("other")...)); err == nil {
		t.Error("two sources")
	}
}

// FuzzParse: no message of a client's does more than to be refused.
func FuzzParse(f *testing.F) {
	f.Add(pairs(7, "k", "v"))
	f.Add(Source("local://x"))
	f.Add([]byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseSolve(b); err == nil && (s.Ref == "" || len(s.Attrs) > maxEntries+1) {
			t.Errorf("%+v", s)
		}
		ParseFrontend(b)
		ParseReturn(b)
		ParseRef(b)
		ParseData(b)
		ParsePrune(b)
		ParseSource(b)
		ParseFileRequest(b)
		ParseDirRequest(b)
		ParseHistoryRequest(b)
		ParseHistoryUpdate(b)
		ParseContentRead(b)
	})
}
