// From the flags of run and create to Docker's records, as docker/cli fills them.

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"

	ctr "keg/internal/container"
	"keg/internal/engine"
	"keg/internal/image"
)

// options makes the request to the engine of flags, image and command.
func (o *containerFlags) options(fs *pflag.FlagSet, args []string) (engine.CreateOptions, error) {
	req := engine.CreateOptions{Name: o.name, Pull: o.pull}
	switch o.pull {
	case "", "always", "missing", "never":
	default:
		return req, fmt.Errorf(`invalid pull option: '%s': must be one of "always", "missing" or "never"`, o.pull)
	}
	cfg, err := o.config(fs, args)
	if err != nil {
		return req, err
	}
	host, err := o.hostConfig(fs)
	if err != nil {
		return req, err
	}
	if cfg.ExposedPorts, host.PortBindings, err = o.ports(); err != nil {
		return req, err
	}
	if host.Binds, cfg.Volumes, err = splitVolumes(o.volumes); err != nil {
		return req, err
	}
	mode, eps, err := o.endpoints()
	if err != nil {
		return req, err
	}
	host.NetworkMode = mode
	if o.platform != "" {
		p, err := image.ParsePlatform(o.platform)
		if err != nil {
			return req, err
		}
		req.Platform = &p
	}
	req.Config, req.Host, req.Networks = cfg, host, eps
	return req, nil
}

func (o *containerFlags) ports() (network.PortSet, network.PortMap, error) {
	exposed, bound, err := parsePorts(o.publish)
	if err != nil {
		return nil, nil, err
	}
	return exposed, bound, addExposed(o.expose, exposed)
}

func (o *containerFlags) config(fs *pflag.FlagSet, args []string) (*container.Config, error) {
	if o.mac != "" {
		if _, err := net.ParseMAC(strings.TrimSpace(o.mac)); err != nil {
			return nil, fmt.Errorf("%s is not a valid mac address", o.mac)
		}
	}
	env, err := readAll(o.envFiles, append(o.proxyEnv(), o.env...), o.lookup)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	labels, err := readAll(o.labelFiles, o.labels, nil)
	if err != nil {
		return nil, fmt.Errorf("--label-file: %w", err)
	}
	health, err := o.health()
	if err != nil {
		return nil, err
	}
	all := len(o.attach) == 0
	c := &container.Config{
		Hostname: o.hostname, Domainname: o.domainname, User: o.user, WorkingDir: o.workdir,
		Tty: o.tty, OpenStdin: o.stdin,
		AttachStdin:  o.stdin || slices.Contains(o.attach, "stdin"),
		AttachStdout: all || slices.Contains(o.attach, "stdout"),
		AttachStderr: all || slices.Contains(o.attach, "stderr"),
		Env:          env, Labels: keyValues(labels),
		Image: args[0], StopSignal: o.stopSignal, Healthcheck: health,
	}
	if len(args) > 1 {
		c.Cmd = args[1:]
	}
	switch {
	case o.entrypoint != "":
		c.Entrypoint = []string{o.entrypoint}
	case fs.Changed("entrypoint"):
		c.Entrypoint = []string{""} // --entrypoint= takes the image's away
	}
	if fs.Changed("stop-timeout") {
		c.StopTimeout = &o.stopTimeout
	}
	c.StdinOnce = c.OpenStdin && c.AttachStdin
	return c, nil
}

// proxyEnv are the variables of config.json's "proxies" that -e does not set.
func (o *containerFlags) proxyEnv() (env []string) {
	given := keyValues(o.env)
	for k, v := range o.proxies() {
		if _, ok := given[k]; !ok {
			env = append(env, k+"="+v)
		}
	}
	slices.Sort(env)
	return env
}

func (o *containerFlags) health() (*container.HealthConfig, error) {
	asked := o.healthCmd != "" || o.healthInterval != 0 || o.healthTimeout != 0 ||
		o.healthStartPeriod != 0 || o.healthStartInterval != 0 || o.healthRetries != 0
	switch {
	case o.noHealthcheck && asked:
		return nil, errors.New("--no-healthcheck conflicts with --health-* options")
	case o.noHealthcheck:
		return &container.HealthConfig{Test: []string{"NONE"}}, nil
	case !asked:
		return nil, nil
	}
	for _, f := range []struct {
		name string
		bad  bool
	}{
		{"interval", o.healthInterval < 0}, {"timeout", o.healthTimeout < 0}, {"retries", o.healthRetries < 0},
		{"start-period", o.healthStartPeriod < 0}, {"start-interval", o.healthStartInterval < 0},
	} {
		if f.bad {
			return nil, fmt.Errorf("--health-%s cannot be negative", f.name)
		}
	}
	h := &container.HealthConfig{
		Interval: o.healthInterval, Timeout: o.healthTimeout, StartPeriod: o.healthStartPeriod,
		StartInterval: o.healthStartInterval, Retries: o.healthRetries,
	}
	if o.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", o.healthCmd}
	}
	return h, nil
}

func (o *containerFlags) hostConfig(fs *pflag.FlagSet) (*container.HostConfig, error) {
	restart, err := parseRestart(o.restart)
	if err != nil {
		return nil, err
	}
	if o.rm && !restart.IsNone() {
		return nil, errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	logOpts := keyValues(o.logOpts)
	if o.logDriver == "none" && len(logOpts) > 0 {
		return nil, fmt.Errorf("invalid logging opts for driver %s", o.logDriver)
	}
	storage := map[string]string{}
	for _, s := range o.storageOpt {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errors.New("invalid storage option")
		}
		storage[k] = v
	}
	security, masked, readonly, err := parseSecurity(o.securityOpt)
	if err != nil {
		return nil, err
	}
	if o.capProfile != "" {
		security = append(security, "cap-profile="+o.capProfile)
	}
	res, err := o.resources()
	if err != nil {
		return nil, err
	}
	h := &container.HostConfig{
		ContainerIDFile: o.cidfile, AutoRemove: o.rm, RestartPolicy: restart,
		LogConfig:    container.LogConfig{Type: o.logDriver, Config: logOpts},
		VolumeDriver: o.volumeDriver, VolumesFrom: o.volumesFrom, Annotations: o.annotations,
		Mounts: o.mounts, Tmpfs: parseTmpfs(o.tmpfs), StorageOpt: storage,
		CapAdd: capabilities(o.capAdd), CapDrop: capabilities(o.capDrop), GroupAdd: o.groupAdd, Privileged: o.privileged,
		SecurityOpt: security, MaskedPaths: masked, ReadonlyPaths: readonly, ReadonlyRootfs: o.readOnly,
		// Lists, never null: inspect shows them so.
		DNS: addresses(o.dns), DNSOptions: append([]string{}, o.dnsOptions...), DNSSearch: append([]string{}, o.dnsSearch...),
		ExtraHosts: o.extraHosts, Links: o.links, PublishAllPorts: o.publishAll,
		IpcMode: container.IpcMode(o.ipc), PidMode: container.PidMode(o.pid), UTSMode: container.UTSMode(o.uts),
		UsernsMode: container.UsernsMode(o.userns), CgroupnsMode: container.CgroupnsMode(o.cgroupns),
		OomScoreAdj: o.oomScoreAdj, ShmSize: o.shmSize, Sysctls: o.sysctls, Runtime: o.runtime, Umask: o.umask,
		Isolation: container.Isolation(o.isolation),
		Resources: res,
	}
	if fs.Changed("init") {
		h.Init = &o.init
	}
	return h, checkModes(h)
}

func checkModes(h *container.HostConfig) error {
	for _, m := range []struct {
		ok   bool
		flag string
	}{
		{h.PidMode.Valid(), "--pid: invalid PID mode"},
		{h.UTSMode.Valid(), "--uts: invalid UTS mode"},
		{h.CgroupnsMode.Valid(), "--cgroupns: invalid CGROUP mode"},
	} {
		if !m.ok {
			return errors.New(m.flag)
		}
	}
	if _, err := ctr.ParseUserns(string(h.UsernsMode)); err != nil {
		return fmt.Errorf("--userns: %w", err)
	}
	return container.ValidateRestartPolicy(h.RestartPolicy)
}

func (o *containerFlags) resources() (container.Resources, error) {
	if o.swappiness < -1 || o.swappiness > 100 {
		return container.Resources{}, fmt.Errorf("invalid value: %d. Valid memory swappiness range is 0-100", o.swappiness)
	}
	r := container.Resources{
		CPUShares: o.cpuShares, CPUPeriod: o.cpuPeriod, CPUQuota: o.cpuQuota, NanoCPUs: o.nanoCPUs,
		CPURealtimePeriod: o.cpuRealtimePeriod, CPURealtimeRuntime: o.cpuRealtimeRT,
		CpusetCpus: o.cpusetCpus, CpusetMems: o.cpusetMems, CgroupParent: o.cgroupParent,
		Memory: o.memory, MemoryReservation: o.memoryReservation, MemorySwap: o.memorySwap,
		MemorySwappiness: &o.swappiness, OomKillDisable: &o.oomKillDisable, PidsLimit: &o.pids,
		BlkioWeight: o.blkioWeight, BlkioWeightDevice: o.weightDevices,
		BlkioDeviceReadBps: o.readBps, BlkioDeviceWriteBps: o.writeBps,
		BlkioDeviceReadIOps: o.readIOps, BlkioDeviceWriteIOps: o.writeIOps,
		Ulimits: o.ulimits.list(), DeviceCgroupRules: o.deviceRules, DeviceRequests: o.gpus,
		Devices: []container.DeviceMapping{},
	}
	var cdi []string
	for _, s := range o.devices {
		if cdiName(s) {
			cdi = append(cdi, s)
			continue
		}
		d, err := parseDevice(s)
		if err != nil {
			return r, err
		}
		r.Devices = append(r.Devices, d)
	}
	if len(cdi) > 0 {
		r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{Driver: "cdi", DeviceIDs: cdi})
	}
	return r, nil
}

// parseRestart reads name[:count]; whether the name exists is checked later.
func parseRestart(s string) (container.RestartPolicy, error) {
	name, count, ok := strings.Cut(s, ":")
	if ok && name == "" {
		return container.RestartPolicy{}, errors.New("invalid restart policy format: no policy provided before colon")
	}
	p := container.RestartPolicy{Name: container.RestartPolicyMode(name)}
	if count != "" {
		n, err := strconv.Atoi(count)
		if err != nil {
			return p, errors.New("invalid restart policy format: maximum retry count must be an integer")
		}
		p.MaximumRetryCount = n
	}
	return p, nil
}

// parseSecurity reads a seccomp profile from its file, and turns
// systempaths=unconfined into empty lists of masked and read-only paths.
func parseSecurity(opts []string) (kept, masked, readonly []string, err error) {
	for _, s := range opts {
		if s == "systempaths=unconfined" {
			masked, readonly = []string{}, []string{}
			continue
		}
		k, v, ok := strings.Cut(s, "=")
		if !ok && k != "no-new-privileges" {
			k, v, ok = strings.Cut(s, ":")
		}
		if (!ok || v == "") && k != "no-new-privileges" {
			return nil, nil, nil, fmt.Errorf("invalid --security-opt: %q", s)
		}
		if k == "seccomp" && v != "builtin" && v != "unconfined" {
			f, err := os.ReadFile(v)
			if err != nil {
				return nil, nil, nil, fmt.Errorf("opening seccomp profile (%s) failed: %w", v, err)
			}
			var b bytes.Buffer
			if err := json.Compact(&b, f); err != nil {
				return nil, nil, nil, fmt.Errorf("compacting json for seccomp profile (%s) failed: %w", v, err)
			}
			s = "seccomp=" + b.String()
		}
		kept = append(kept, s)
	}
	return kept, masked, readonly, nil
}

// capabilities writes names as inspect shows them (net_admin is CAP_NET_ADMIN), each once.
func capabilities(names []string) (out []string) {
	for _, n := range names {
		n = strings.ToUpper(strings.TrimSpace(n))
		if n != "ALL" && !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func addresses(ss []string) []netip.Addr {
	out := []netip.Addr{}
	for _, s := range ss {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}
