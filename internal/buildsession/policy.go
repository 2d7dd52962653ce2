package buildsession

import (
	"context"
	"fmt"
	"strings"

	"keg/internal/fault"
	"keg/internal/grpc"
)

// A client with a policy is asked about each source of a build (moby/buildkit sourcepolicy/policysession). keg tells what it
// knows of one; a policy that asks for more, such as signatures, gets no answer, and the build fails.
const methodPolicy = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy"

// PolicySource is what a build is to read.
type PolicySource struct {
	Identifier                string // "docker-image://docker.io/library/x:latest", "https://...", "local://context"
	Attrs                     map[string]string
	OS, Architecture, Variant string
	Digest                    string // of an image
	Config                    []byte
}

// Actions of a policy.
const (
	policyAllow   = 0
	policyConvert = 2
)

// Approve asks whether a source may be read. nil: yes.
func (s *Session) Approve(ctx context.Context, src PolicySource) error {
	op := grpc.AppendText(nil, 1, src.Identifier)
	for k, v := range src.Attrs {
		op = grpc.AppendMessage(op, 2, grpc.AppendText(grpc.AppendText(nil, 1, k), 2, v))
	}
	source := grpc.AppendMessage(nil, 1, op)
	if src.Digest != "" {
		source = grpc.AppendMessage(source, 2, grpc.AppendText(grpc.AppendText(nil, 1, src.Digest), 2, src.Config))
	}
	var q []byte
	if src.OS != "" {
		q = grpc.AppendMessage(q, 1, grpc.AppendText(grpc.AppendText(grpc.AppendText(nil, 1, src.Architecture), 2, src.OS), 3, src.Variant))
	}
	b, err := s.ask(ctx, methodPolicy, grpc.AppendMessage(q, 2, source))
	if err != nil {
		return fmt.Errorf("ask the client's policy about %s: %w", src.Identifier, err)
	}
	d, err := parseDecision(b)
	switch {
	case err != nil:
		return err
	case !d.made:
		return fault.Unsupportedf("the client's policy wants to know more of %s than keg tells (digest and config of an image): %s", src.Identifier, "leave such rules out, or build with --policy disabled=true")
	case d.action == policyAllow:
		return nil
	case d.action == policyConvert && src.Digest != "" && strings.HasSuffix(d.update, "@"+src.Digest):
		return nil // the very image that is here
	case d.action == policyConvert:
		return fault.Deniedf("source %q: the client's policy wants %q in its place: name that in the Dockerfile", src.Identifier, d.update)
	}
	why := ""
	if len(d.messages) > 0 {
		why = ": " + strings.Join(d.messages, "; ")
	}
	return fault.As(fault.Invalid, fmt.Errorf("source %q not allowed by policy: action DENY%s", src.Identifier, why))
}

type decision struct {
	made     bool
	action   uint64
	messages []string
	update   string
}

func parseDecision(b []byte) (d decision, err error) {
	err = grpc.Each(b, func(f grpc.Field) error {
		if f.Number != 1 || f.Kind != grpc.Delimited {
			return nil
		}
		d.made = true
		return grpc.Each(f.Data, func(f grpc.Field) error {
			text, err := []byte(nil), error(nil)
			switch {
			case f.Number == 1 && f.Kind == grpc.Varint:
				d.action = f.Value
			case f.Number == 2 && f.Kind == grpc.Delimited && len(d.messages) < 64:
				text, err = textOf(f.Data, 1)
				d.messages = append(d.messages, string(text))
			case f.Number == 3 && f.Kind == grpc.Delimited:
				text, err = textOf(f.Data, 1)
				d.update = string(text)
			}
			return err
		})
	})
	return d, err
}
