package api

// The build cache through the control protocol: docker buildx du and prune.

import (
	"slices"
	"strings"
	"time"

	"keg/internal/buildcontrol"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/grpc"
)

// cacheFilter reads filters in containerd's form: "id~=x,type==regular,shared".
func cacheFilter(list []string) (engine.Filter, error) {
	if len(list) > 1 {
		return nil, fault.Unsupportedf("several filters at once are not supported: write them as one, with commas")
	}
	f := engine.Filter{}
	for _, all := range list {
		for one := range strings.SplitSeq(all, ",") {
			if one == "" {
				continue
			}
			i := strings.IndexAny(one, "~=!")
			if i < 0 {
				f[one] = append(f[one], "")
				continue
			}
			key, op := one[:i], one[i:]
			value := strings.TrimLeft(op, "~=!")
			switch op[:len(op)-len(value)] {
			case "==", "=", "~=":
				f[key] = append(f[key], value)
			default:
				return nil, fault.Unsupportedf("the filter %q is not supported: want KEY=VALUE", one)
			}
		}
	}
	return f, nil
}

func usage(c engine.CacheEntry) buildcontrol.Usage {
	return buildcontrol.Usage{ID: c.ID, Type: c.Type(), Description: c.Description, Size: c.Size, Mutable: c.Type() == "exec.cachemount",
		Shared: c.Shared, Created: c.Created, Used: c.Used}
}

func (c *control) diskUsage(st *grpc.Stream, b []byte) ([]byte, error) {
	q, err := buildcontrol.ParseCacheRequest(b)
	if err != nil {
		return nil, err
	}
	f, err := cacheFilter(q.Filters)
	if err != nil {
		return nil, err
	}
	list, err := c.s.engine.BuildCache(st.Context(), f)
	if err != nil {
		return nil, err
	}
	var us []buildcontrol.Usage
	for _, e := range list {
		us = append(us, usage(e))
	}
	return buildcontrol.Usages(us), nil
}

func (c *control) prune(st *grpc.Stream) error {
	b, err := st.Receive()
	if err != nil {
		return err
	}
	q, err := buildcontrol.ParsePrune(b)
	if err != nil {
		return err
	}
	o := engine.PruneOptions{BuildCache: true, All: q.All, Reserved: q.Reserved, MaxUsed: q.MaxUsed, MinFree: q.MinFree}
	if o.Filter, err = cacheFilter(q.Filters); err != nil {
		return err
	}
	if q.Keep > 0 {
		o.Filter["until"] = []string{q.Keep.Round(time.Second).String()}
	}
	p, err := c.s.engine.Prune(st.Context(), o)
	if err != nil {
		return err
	}
	if err := st.Header(); err != nil {
		return err
	}
	slices.SortFunc(p.CacheEntries, func(a, b engine.CacheEntry) int { return a.Created.Compare(b.Created) })
	for _, e := range p.CacheEntries {
		if err := st.Send(usage(e).Encode()); err != nil {
			return err
		}
	}
	return nil
}
