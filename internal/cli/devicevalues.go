// --gpus, --blkio-weight-device and --device-{read,write}-{bps,iops}.

package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
)

// gpusValue is Docker's shorthand for device requests with the capability "gpu".
type gpusValue struct{ list *[]container.DeviceRequest }

func (g *gpusValue) Type() string { return "gpu-request" }
func (g *gpusValue) String() string {
	var out []string
	for _, r := range *g.list {
		out = append(out, fmt.Sprintf("%+v", r))
	}
	return strings.Join(out, ", ")
}

func (g *gpusValue) Set(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	r := container.DeviceRequest{Options: map[string]string{}}
	seen := map[string]bool{}
	for _, f := range fields {
		key, val, ok := strings.Cut(f, "=")
		if seen[key] {
			return fmt.Errorf("gpu request key '%s' can be specified only once", key)
		}
		seen[key] = true
		if !ok {
			seen["count"] = true
			if r.Count, err = gpuCount(key); err != nil {
				return err
			}
			continue
		}
		switch key {
		case "driver":
			r.Driver = val
		case "count":
			if r.Count, err = gpuCount(val); err != nil {
				return err
			}
		case "device":
			r.DeviceIDs = strings.Split(val, ",")
		case "capabilities":
			r.Capabilities = [][]string{append(strings.Split(val, ","), "gpu")}
		case "options":
			opts, err := csv.NewReader(strings.NewReader(val)).Read()
			if err != nil {
				return fmt.Errorf("failed to read gpu options: %w", err)
			}
			r.Options = keyValues(opts)
		default:
			return fmt.Errorf("unexpected key '%s' in '%s'", key, f)
		}
	}
	if !seen["count"] && r.DeviceIDs == nil {
		r.Count = 1
	}
	if r.Capabilities == nil {
		r.Capabilities = [][]string{{"gpu"}}
	}
	*g.list = append(*g.list, r)
	return nil
}

func gpuCount(s string) (int, error) {
	if s == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("invalid count (%s): value must be either \"all\" or an integer: %w", s, errors.Unwrap(err))
	}
	return n, nil
}

// weightValue is DEVICE:WEIGHT.
type weightValue struct{ list *[]*blkiodev.WeightDevice }

func (w *weightValue) Type() string { return "list" }
func (w *weightValue) String() string {
	var out []string
	for _, d := range *w.list {
		out = append(out, d.String())
	}
	return fmt.Sprint(out)
}

func (w *weightValue) Set(s string) error {
	dev, val, ok := strings.Cut(s, ":")
	if !ok || dev == "" {
		return fmt.Errorf("bad format: %s", s)
	}
	if !strings.HasPrefix(dev, "/dev/") {
		return fmt.Errorf("bad format for device path: %s", s)
	}
	n, err := strconv.ParseUint(val, 10, 16)
	if err != nil || n > 0 && (n < 10 || n > 1000) {
		return fmt.Errorf("invalid weight for device: %s", s)
	}
	*w.list = append(*w.list, &blkiodev.WeightDevice{Path: dev, Weight: uint16(n)})
	return nil
}

// throttleValue is DEVICE:RATE; a rate in bytes may have a unit.
type throttleValue struct {
	list  *[]*blkiodev.ThrottleDevice
	bytes bool
}

func (t *throttleValue) Type() string { return "list" }
func (t *throttleValue) String() string {
	var out []string
	for _, d := range *t.list {
		out = append(out, d.String())
	}
	return fmt.Sprint(out)
}

func (t *throttleValue) Set(s string) error {
	dev, val, ok := strings.Cut(s, ":")
	if !ok || dev == "" {
		return fmt.Errorf("bad format: %s", s)
	}
	if !strings.HasPrefix(dev, "/dev/") {
		return fmt.Errorf("bad format for device path: %s", s)
	}
	d := &blkiodev.ThrottleDevice{Path: dev}
	if t.bytes {
		n, err := units.RAMInBytes(val)
		if err != nil || n < 0 {
			return fmt.Errorf("invalid rate for device: %s. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb", s)
		}
		d.Rate = uint64(n)
	} else {
		n, err := strconv.ParseUint(val, 10, 64)
		if err != nil {
			return fmt.Errorf("invalid rate for device: %s. The correct format is <device-path>:<number>. Number must be a positive integer", s)
		}
		d.Rate = n
	}
	*t.list = append(*t.list, d)
	return nil
}
