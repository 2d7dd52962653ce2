// keg build --ssh: agents by their sockets, and keys by their files.

package cli

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"keg/internal/builder"
)

// buildAgents reads what --ssh names: id, id=SOCKET or id=KEY[,KEY]. A build is given signatures, never a key.
func (a *app) buildAgents(specs []string) (map[string]builder.Agent, error) {
	agents := map[string]builder.Agent{}
	for _, s := range specs {
		id, places, _ := strings.Cut(s, "=")
		if id == "" {
			id = "default"
		}
		if places == "" {
			places = a.env["SSH_AUTH_SOCK"]
		}
		if places == "" {
			return nil, fmt.Errorf("invalid --ssh %q: SSH_AUTH_SOCK is not set; start an agent (eval $(ssh-agent); ssh-add), or name a key: --ssh %s=FILE", s, id)
		}
		if agents[id] != nil {
			return nil, fmt.Errorf("invalid --ssh %q: there are two of that name", s)
		}
		var err error
		if agents[id], err = openAgent(strings.Split(places, ",")); err != nil {
			return nil, fmt.Errorf("invalid --ssh %q: %w", s, err)
		}
	}
	return agents, nil
}

// openAgent is the agent at a socket, or one of our own that has the keys of some files.
func openAgent(places []string) (builder.Agent, error) {
	keys := agent.NewKeyring().(agent.ExtendedAgent) // it is one since 2019, for the signatures of RSA keys
	for _, p := range places {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if st.Mode().Type() == os.ModeSocket {
			if len(places) > 1 {
				return nil, errors.New("name one socket, or files of keys")
			}
			return func() (net.Conn, error) { return net.Dial("unix", p) }, nil
		}
		k, err := readKey(p)
		if err != nil {
			return nil, err
		}
		if err := keys.Add(agent.AddedKey{PrivateKey: k, Comment: p}); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	return func() (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			serveKeys(keys, ours)
			ours.Close()
		}()
		return theirs, nil
	}, nil
}

func readKey(file string) (any, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	k, err := ssh.ParseRawPrivateKey(b)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, fmt.Errorf("the key %s has a passphrase; add it to an agent (eval $(ssh-agent); ssh-add %s)", file, file)
	case err != nil:
		return nil, fmt.Errorf("%s is neither the socket of an agent nor a private key: %w", file, err)
	}
	return k, nil
}

// The protocol of agents (draft-ietf-sshm-ssh-agent), as much of it as a build may use: it lists keys and signs. The
// agent's own server would write what it refuses to a log.
//
//	u32 length | u8 type | contents
const (
	agentFailure    = 5
	agentList       = 11
	agentKeys       = 12
	agentSign       = 13
	agentMaxMessage = 256 << 10
)

type agentSignRequest struct {
	Key   []byte `sshtype:"13"`
	Data  []byte
	Flags uint32
}

type agentSignature struct {
	Blob []byte `sshtype:"14"`
}

// serveKeys answers until the other side is gone or does not speak the protocol.
func serveKeys(keys agent.ExtendedAgent, c net.Conn) {
	for {
		var n uint32
		if binary.Read(c, binary.BigEndian, &n) != nil || n == 0 || n > agentMaxMessage {
			return
		}
		q := make([]byte, n)
		if _, err := io.ReadFull(c, q); err != nil {
			return
		}
		answer, err := answerKeys(keys, q)
		if err != nil {
			answer = []byte{agentFailure}
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...)); err != nil {
			return
		}
	}
}

func answerKeys(keys agent.ExtendedAgent, q []byte) ([]byte, error) {
	switch q[0] {
	case agentList:
		list, err := keys.List()
		out := binary.BigEndian.AppendUint32([]byte{agentKeys}, uint32(len(list)))
		for _, k := range list {
			out = append(out, ssh.Marshal(struct{ Blob, Comment string }{string(k.Blob), k.Comment})...)
		}
		return out, err
	case agentSign:
		var r agentSignRequest
		if err := ssh.Unmarshal(q, &r); err != nil {
			return nil, err
		}
		k, err := ssh.ParsePublicKey(r.Key)
		if err != nil {
			return nil, err
		}
		sig, err := keys.SignWithFlags(k, r.Data, agent.SignatureFlags(r.Flags))
		if err != nil {
			return nil, err
		}
		return ssh.Marshal(agentSignature{ssh.Marshal(sig)}), nil
	}
	return nil, errors.New("this agent only lists and signs")
}
