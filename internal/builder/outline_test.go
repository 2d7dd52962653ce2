package builder

import (
	"testing"
)

func TestDescribe(t *testing.T) {
	text := `ARG UNUSED=1
# BASE is below
ARG BASE=scratch
# one is first
FROM ${BASE} AS one
# WORD is said
ARG WORD=w-${BASE}
RUN --mount=type=secret,id=s,required --mount=type=ssh echo
FROM scratch AS other
ARG OTHER
FROM one
RUN --mount=type=secret,target=/t echo
`
	given := "given"
	o, err := Describe(Options{Context: t.TempDir(), Dockerfile: "-", Text: []byte(text), Args: map[string]*string{"WORD": &given}})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Stages) != 3 || o.Stages[0] != (StageInfo{"one", "is first", "${BASE}", "", 5, 5}) || o.Target.First != 11 {
		t.Errorf("%+v, target %+v", o.Stages, o.Target)
	}
	if len(o.Args) != 2 || o.Args[0] != (Parameter{"BASE", "is below", "scratch", false, 3, 3}) || o.Args[1] != (Parameter{"WORD", "is said", "given", false, 7, 7}) {
		t.Errorf("%+v", o.Args)
	}
	if len(o.Secrets) != 2 || o.Secrets[0].Name != "s" || !o.Secrets[0].Required || o.Secrets[1].Name != "t" || len(o.SSH) != 1 || o.SSH[0].Name != "default" {
		t.Errorf("%+v %+v", o.Secrets, o.SSH)
	}
	if _, err := Describe(Options{Context: t.TempDir(), Dockerfile: "-", Text: []byte(text), Target: "none"}); err == nil {
		t.Error("a target that is not there")
	}
}
