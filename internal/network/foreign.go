package network

// Other firewalls on the host. An accept in our table cannot override a drop in
// another chain of the same hook, so where Docker, ufw, firewalld or an administrator
// drops what is forwarded by default, keg adds two commented rules for each bridge to
// the chain meant for that, and removes them when the bridge goes. Rules of the older
// xtables (iptables-legacy) are not looked at.

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A foreignChain is where somebody else decides about forwarded packets.
type foreignChain struct {
	family nftables.TableFamily
	table  string
	chain  string
}

func (c foreignChain) String() string {
	fam := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	return fam[c.family] + " " + c.table + " " + c.chain
}

// choosePass picks, of all chains of the host, those that must let us through: for
// each table whose forward chain drops by policy, its DOCKER-USER chain, else the
// forward chain itself.
func choosePass(chains []*nftables.Chain) (out []foreignChain) {
	for _, c := range chains {
		forwards := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop ||
			c.Table.Name == "firewalld" // its last rule rejects
		if !forwards || !drops || strings.HasPrefix(c.Table.Name, "keg_") {
			continue
		}
		f := foreignChain{c.Table.Family, c.Table.Name, c.Name}
		for _, o := range chains {
			if o.Table.Name == c.Table.Name && o.Table.Family == c.Table.Family && o.Name == "DOCKER-USER" {
				f.chain = o.Name
			}
		}
		out = append(out, f)
	}
	return out
}

// letThrough adds the rules for bridge where needed and says where, "" for nowhere,
// and where the owner of the table does not let it (firewalld may own its own).
func letThrough(table, bridge string) (passed, blocked string, err error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return "", "", fmt.Errorf("open nftables: %w", err)
	}
	defer func() { go c.CloseLasting() }()
	chains, err := c.ListChains()
	if err != nil {
		return "", "", nil // no nftables in this kernel is reported where our own table is made
	}
	var where, refused []string
	for _, f := range choosePass(chains) {
		if err := f.removeRules(c, passComment(table, bridge)); err != nil {
			return "", "", err
		}
		t := &nftables.Table{Name: f.table, Family: f.family}
		for _, k := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			name := make([]byte, unix.IFNAMSIZ)
			copy(name, bridge)
			c.InsertRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: f.chain, Table: t},
				UserData: userdata.AppendString(nil, userdata.TypeComment, passComment(table, bridge)),
				Exprs: []expr.Any{
					&expr.Meta{Key: k, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
					&expr.Counter{},
					&expr.Verdict{Kind: expr.VerdictAccept},
				}})
		}
		switch err := c.Flush(); {
		case errors.Is(err, unix.EPERM):
			refused = append(refused, f.String())
		case err != nil:
			return "", "", fmt.Errorf("let bridge %s through chain %s, which drops forwarded packets: %w", bridge, f, err)
		default:
			where = append(where, f.String())
		}
	}
	return strings.Join(where, ", "), strings.Join(refused, ", "), nil
}

func passComment(table, bridge string) string { return table + " " + bridge }

// stopLetting removes the rules of a bridge wherever they are.
func stopLetting(table string, n upNetwork) error {
	if n.Firewall == "" {
		return nil
	}
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { go c.CloseLasting() }()
	for _, where := range strings.Split(n.Firewall, ", ") {
		w := strings.Fields(where)
		if len(w) != 3 {
			continue
		}
		fam := map[string]nftables.TableFamily{"ip": nftables.TableFamilyIPv4, "ip6": nftables.TableFamilyIPv6, "inet": nftables.TableFamilyINet}
		f := foreignChain{fam[w[0]], w[1], w[2]}
		if err := f.removeRules(c, passComment(table, n.Bridge)); err != nil {
			return err
		}
	}
	return c.Flush()
}

// removeRules queues the deletion of the rules that carry the comment. A chain that is
// gone has none.
func (f foreignChain) removeRules(c *nftables.Conn, comment string) error {
	t := &nftables.Table{Name: f.table, Family: f.family}
	rules, err := c.GetRules(t, &nftables.Chain{Name: f.chain, Table: t})
	if err != nil {
		return nil
	}
	for _, r := range rules {
		if got, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && got == comment {
			if err := c.DelRule(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// Firewalls tells, a sentence each, where keg added rules to other firewalls' chains and
// where it could not: for keg info.
func (s *Store) Firewalls() ([]string, error) {
	st, err := s.state()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(st.Up)) {
		n := st.Up[name]
		if n.Firewall != "" {
			out = append(out, fmt.Sprintf("network %s: two rules in %s let bridge %s through; they go with the bridge", name, n.Firewall, n.Bridge))
		}
		if n.Blocked != "" {
			out = append(out, fmt.Sprintf("network %s: %s drops what bridge %s forwards and belongs to somebody else; allow it there (firewalld: firewall-cmd --zone=trusted --add-interface=%s)",
				name, n.Blocked, n.Bridge, n.Bridge))
		}
	}
	return out, nil
}
