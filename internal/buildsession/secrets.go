package buildsession

import (
	"context"
	"fmt"
	"net"

	"keg/internal/fault"
	"keg/internal/grpc"
)

const (
	methodSecret      = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
	methodCredentials = "/moby.filesync.v1.Auth/Credentials"
	methodCheckAgent  = "/moby.sshforward.v1.SSH/CheckAgent"
	methodForward     = "/moby.sshforward.v1.SSH/ForwardAgent"
)

// maxSecret is BuildKit's own limit.
const maxSecret = 500 << 10

// Secret asks for a secret; found is false when the client has none of that id.
func (s *Session) Secret(ctx context.Context, id string) (data []byte, found bool, err error) {
	if !s.offers(methodSecret) {
		return nil, false, nil
	}
	b, err := s.ask(ctx, methodSecret, grpc.AppendText(nil, 1, id))
	if hasCode(err, grpc.CodeNotFound) || hasCode(err, grpc.CodeUnimplemented) {
		return nil, false, nil
	}
	if err == nil {
		data, err = textOf(b, 1)
	}
	if err == nil && len(data) > maxSecret {
		err = fault.Invalidf("it is larger than 500 KiB")
	}
	if err != nil {
		return nil, false, fmt.Errorf("secret %s: %w", id, err)
	}
	return data, true, nil
}

// Credentials asks for the client's account at a registry, by Docker's name of it
// ("https://index.docker.io/v1/" for Docker Hub). Without a name the secret is an identity token.
func (s *Session) Credentials(ctx context.Context, host string) (name, secret string, err error) {
	if !s.offers(methodCredentials) {
		return "", "", nil
	}
	b, err := s.ask(ctx, methodCredentials, grpc.AppendText(nil, 1, host))
	if err != nil {
		return "", "", fmt.Errorf("ask the client for its account at %s: %w", host, err)
	}
	err = grpc.Each(b, func(f grpc.Field) error {
		switch {
		case f.Number == 1 && f.Kind == grpc.Delimited:
			name = string(f.Data)
		case f.Number == 2 && f.Kind == grpc.Delimited:
			secret = string(f.Data)
		}
		return nil
	})
	return name, secret, err
}

func textOf(b []byte, number int) (data []byte, err error) {
	err = grpc.Each(b, func(f grpc.Field) error {
		if f.Number == number && f.Kind == grpc.Delimited {
			data = f.Data
		}
		return nil
	})
	return data, err
}

// HasAgent tells whether the client has an agent of ssh under an id.
func (s *Session) HasAgent(ctx context.Context, id string) bool {
	if !s.offers(methodForward) {
		return false
	}
	_, err := s.ask(ctx, methodCheckAgent, grpc.AppendText(nil, 1, id))
	return err == nil
}

// Agent connects to an agent of the client's, until the connection is closed or ctx ends.
func (s *Session) Agent(ctx context.Context, id string) net.Conn {
	ours, theirs := net.Pipe()
	st := s.call(ctx, methodForward, map[string][]string{"buildkit.ssh.id": {id}})
	go func() {
		defer st.endSending()
		b := make([]byte, 32<<10)
		for {
			n, err := theirs.Read(b)
			if n > 0 {
				if err := st.send(grpc.AppendText(nil, 1, b[:n])); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer st.close()
		defer theirs.Close()
		for {
			b, err := st.receive()
			if err != nil {
				return
			}
			data, err := textOf(b, 1)
			if err != nil {
				return
			}
			if _, err := theirs.Write(data); err != nil {
				return
			}
		}
	}()
	return ours
}
