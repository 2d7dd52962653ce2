// The flags that run and create share.

package cli

import (
	"net"
	"time"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/spf13/pflag"
)

// containerFlags is what was typed; config() makes Docker's records of it.
type containerFlags struct {
	attach, env, envFiles, labels, labelFiles          []string
	volumes, tmpfs, volumesFrom, devices, deviceRules  []string
	publish, expose, links, aliases, linkLocal         []string
	dns, dnsSearch, dnsOptions, extraHosts             []string
	capAdd, capDrop, groupAdd, securityOpt, storageOpt []string
	logOpts                                            []string
	sysctls, annotations                               map[string]string
	mounts                                             []mount.Mount
	networks                                           []attachment
	ulimits                                            ulimitValue
	gpus                                               []container.DeviceRequest

	weightDevices                          []*blkiodev.WeightDevice
	readBps, writeBps, readIOps, writeIOps []*blkiodev.ThrottleDevice

	entrypoint, hostname, domainname, user, workdir, mac                   string
	restart, stopSignal, pid, ipc, uts, userns, cgroupns, cgroupParent     string
	cpusetCpus, cpusetMems, logDriver, volumeDriver, runtime, isolation    string
	healthCmd, cidfile, capProfile                                         string
	ip, ip6                                                                net.IP
	stdin, tty, readOnly, rm, privileged, publishAll, init, oomKillDisable bool
	noHealthcheck                                                          bool
	stopTimeout, oomScoreAdj, healthRetries                                int
	memory, memoryReservation, memorySwap, swappiness, shmSize, nanoCPUs   int64
	cpuShares, cpuPeriod, cpuQuota, cpuRealtimePeriod, cpuRealtimeRT, pids int64
	blkioWeight                                                            uint16
	umask                                                                  *uint32
	healthInterval, healthTimeout, healthStartPeriod, healthStartInterval  time.Duration
	name, platform, pull                                                   string
	quiet                                                                  bool
	checkEnv                                                               func(string) (string, error)
	lookup                                                                 func(string) (string, bool)
	proxies                                                                func() map[string]string
}

func newContainerFlags(a *app) *containerFlags {
	return &containerFlags{checkEnv: a.checkEnv, lookup: a.lookup, proxies: a.proxyEnv, platform: a.env["DOCKER_DEFAULT_PLATFORM"]}
}

func (o *containerFlags) bind(fs *pflag.FlagSet, verb string) {
	fs.SetInterspersed(false) // what follows the image belongs to the container
	fs.StringVar(&o.name, "name", "", "Assign a name to the container")
	fs.StringVar(&o.platform, "platform", o.platform, "Set platform if the image has several")
	fs.StringVar(&o.pull, "pull", "missing", `Pull image before `+verb+` ("always", "missing", "never")`)
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress the pull output")
	fs.StringVar(&o.cidfile, "cidfile", "", "Write the container ID to the file")
	o.bindGeneral(fs)
	o.bindSecurity(fs)
	o.bindNetwork(fs)
	o.bindStorage(fs)
	o.bindHealth(fs)
	o.bindResources(fs)
	o.bindNamespaces(fs)
	fs.Bool("disable-content-trust", true, "")
	fs.Lookup("disable-content-trust").Hidden = true
}

func (o *containerFlags) bindGeneral(fs *pflag.FlagSet) {
	fs.VarP(newList(&o.attach, checkAttach), "attach", "a", "Attach to STDIN, STDOUT or STDERR")
	fs.VarP(newList(&o.env, o.checkEnv), "env", "e", "Set environment variables")
	fs.Var(newList(&o.envFiles, nil), "env-file", "Read environment variables from a file")
	fs.StringVar(&o.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	fs.Var(newList(&o.groupAdd, nil), "group-add", "Add additional groups to join")
	fs.StringVarP(&o.hostname, "hostname", "h", "", "Container host name")
	fs.StringVar(&o.domainname, "domainname", "", "Container NIS domain name")
	fs.BoolVarP(&o.stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.VarP(newList(&o.labels, checkLabel), "label", "l", "Set metadata on a container")
	fs.Var(newList(&o.labelFiles, nil), "label-file", "Read labels from a file, one a line")
	fs.BoolVar(&o.readOnly, "read-only", false, "Mount the container's root filesystem read-only")
	fs.StringVar(&o.restart, "restart", "no", `Restart policy ("no", "always", "unless-stopped", "on-failure[:max]")`)
	fs.StringVar(&o.stopSignal, "stop-signal", "", "Signal to stop the container")
	fs.IntVar(&o.stopTimeout, "stop-timeout", 0, "Timeout (in seconds) to stop a container")
	fs.Var(newMap(&o.sysctls, checkSysctl), "sysctl", "Sysctl options")
	fs.BoolVarP(&o.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.Var(&o.ulimits, "ulimit", "Ulimit options")
	fs.StringVarP(&o.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	fs.Var(&umaskValue{&o.umask}, "umask", "Set the umask of the container")
	fs.StringVarP(&o.workdir, "workdir", "w", "", "Working directory inside the container")
	fs.BoolVar(&o.rm, "rm", false, "Remove the container and its anonymous volumes when it exits")
	fs.BoolVar(&o.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	fs.Var(newMap(&o.annotations, nil), "annotation", "Add an annotation to the container (passed through to the OCI runtime)")
}

func (o *containerFlags) bindSecurity(fs *pflag.FlagSet) {
	fs.Var(newList(&o.capAdd, nil), "cap-add", "Add Linux capabilities")
	fs.Var(newList(&o.capDrop, nil), "cap-drop", "Drop Linux capabilities")
	fs.StringVar(&o.capProfile, "cap-profile", "", `Capabilities to start from ("docker", "strict": without MKNOD, NET_RAW and AUDIT_WRITE) (default "docker")`)
	fs.BoolVar(&o.privileged, "privileged", false, "Give extended privileges to this container")
	fs.Var(newList(&o.securityOpt, nil), "security-opt", "Security options")
	fs.Var(newList(&o.devices, nil), "device", "Add a host device to the container")
	fs.Var(newList(&o.deviceRules, checkDeviceRule), "device-cgroup-rule", "Add a rule to the cgroup's list of allowed devices")
	fs.Var(&gpusValue{&o.gpus}, "gpus", "GPU devices to add to the container ('all' to pass all GPUs)")
	fs.StringVar(&o.userns, "userns", "", "User namespace to use")
}

func (o *containerFlags) bindNetwork(fs *pflag.FlagSet) {
	fs.Var(newList(&o.extraHosts, checkExtraHost), "add-host", "Add a custom host-to-IP mapping (host:ip)")
	fs.Var(newList(&o.dns, checkIP), "dns", "Set custom DNS servers")
	fs.Var(newList(&o.dnsOptions, nil), "dns-opt", "")
	fs.Var(newList(&o.dnsOptions, nil), "dns-option", "Set DNS options")
	fs.Var(newList(&o.dnsSearch, checkDNSSearch), "dns-search", "Set custom DNS search domains")
	fs.Var(newList(&o.expose, nil), "expose", "Expose a port or a range of ports")
	fs.IPVar(&o.ip, "ip", nil, "IPv4 address (e.g., 172.30.100.104)")
	fs.IPVar(&o.ip6, "ip6", nil, "IPv6 address (e.g., 2001:db8::33)")
	fs.Var(newList(&o.links, checkLink), "link", "Add link to another container")
	fs.Var(newList(&o.linkLocal, nil), "link-local-ip", "Container IPv4/IPv6 link-local addresses")
	fs.StringVar(&o.mac, "mac-address", "", "Container MAC address (e.g., 92:d0:c6:0a:29:33)")
	fs.VarP(newList(&o.publish, nil), "publish", "p", "Publish a container's port(s) to the host")
	fs.BoolVarP(&o.publishAll, "publish-all", "P", false, "Publish all exposed ports to random ports")
	fs.Var(&networkValue{&o.networks}, "net", "")
	fs.Var(&networkValue{&o.networks}, "network", "Connect a container to a network")
	fs.Var(newList(&o.aliases, nil), "net-alias", "")
	fs.Var(newList(&o.aliases, nil), "network-alias", "Add network-scoped alias for the container")
	for _, old := range []string{"dns-opt", "net", "net-alias"} {
		fs.Lookup(old).Hidden = true
	}
}

func (o *containerFlags) bindStorage(fs *pflag.FlagSet) {
	fs.StringVar(&o.logDriver, "log-driver", "", "Logging driver for the container")
	fs.Var(newList(&o.logOpts, nil), "log-opt", "Log driver options")
	fs.Var(newList(&o.storageOpt, nil), "storage-opt", "Storage driver options for the container")
	fs.Var(newList(&o.tmpfs, nil), "tmpfs", "Mount a tmpfs directory")
	fs.StringVar(&o.volumeDriver, "volume-driver", "", "Optional volume driver for the container")
	fs.Var(newList(&o.volumesFrom, nil), "volumes-from", "Mount volumes from the specified container(s)")
	fs.VarP(newList(&o.volumes, nil), "volume", "v", "Bind mount a volume")
	fs.Var(&mountValue{&o.mounts}, "mount", "Attach a filesystem mount to the container")
}

func (o *containerFlags) bindHealth(fs *pflag.FlagSet) {
	fs.StringVar(&o.healthCmd, "health-cmd", "", "Command to run to check health")
	fs.DurationVar(&o.healthInterval, "health-interval", 0, "Time between running the check (ms|s|m|h) (default 0s)")
	fs.IntVar(&o.healthRetries, "health-retries", 0, "Consecutive failures needed to report unhealthy")
	fs.DurationVar(&o.healthTimeout, "health-timeout", 0, "Maximum time to allow one check to run (ms|s|m|h) (default 0s)")
	fs.DurationVar(&o.healthStartPeriod, "health-start-period", 0, "Time for the container to start before failures count (ms|s|m|h) (default 0s)")
	fs.DurationVar(&o.healthStartInterval, "health-start-interval", 0, "Time between running the check during the start period (ms|s|m|h) (default 0s)")
	fs.BoolVar(&o.noHealthcheck, "no-healthcheck", false, "Disable any HEALTHCHECK of the image")
}

func (o *containerFlags) bindResources(fs *pflag.FlagSet) {
	fs.Uint16Var(&o.blkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)")
	fs.Var(&weightValue{&o.weightDevices}, "blkio-weight-device", "Block IO weight (relative device weight)")
	fs.StringVar(&o.cpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fs.StringVar(&o.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	fs.Int64Var(&o.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fs.Int64Var(&o.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fs.Int64Var(&o.cpuRealtimePeriod, "cpu-rt-period", 0, "Limit CPU real-time period in microseconds")
	fs.Int64Var(&o.cpuRealtimeRT, "cpu-rt-runtime", 0, "Limit CPU real-time runtime in microseconds")
	fs.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fs.Var(&cpusValue{&o.nanoCPUs}, "cpus", "Number of CPUs")
	fs.Var(&throttleValue{list: &o.readBps, bytes: true}, "device-read-bps", "Limit read rate (bytes per second) from a device")
	fs.Var(&throttleValue{list: &o.readIOps}, "device-read-iops", "Limit read rate (IO per second) from a device")
	fs.Var(&throttleValue{list: &o.writeBps, bytes: true}, "device-write-bps", "Limit write rate (bytes per second) to a device")
	fs.Var(&throttleValue{list: &o.writeIOps}, "device-write-iops", "Limit write rate (IO per second) to a device")
	fs.VarP(&bytesValue{p: &o.memory}, "memory", "m", "Memory limit")
	fs.Var(&bytesValue{p: &o.memoryReservation}, "memory-reservation", "Memory soft limit")
	fs.Var(&bytesValue{p: &o.memorySwap, unlimited: true}, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	fs.Int64Var(&o.swappiness, "memory-swappiness", -1, "Tune container memory swappiness (0 to 100)")
	fs.BoolVar(&o.oomKillDisable, "oom-kill-disable", false, "Disable OOM Killer")
	fs.IntVar(&o.oomScoreAdj, "oom-score-adj", 0, "Tune host's OOM preferences (-1000 to 1000)")
	fs.Int64Var(&o.pids, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	fs.Var(&bytesValue{p: &o.shmSize}, "shm-size", "Size of /dev/shm")
}

func (o *containerFlags) bindNamespaces(fs *pflag.FlagSet) {
	fs.StringVar(&o.cgroupParent, "cgroup-parent", "", "Optional parent cgroup for the container")
	fs.StringVar(&o.cgroupns, "cgroupns", "", "Cgroup namespace to use (host|private)")
	fs.StringVar(&o.ipc, "ipc", "", "IPC mode to use")
	fs.StringVar(&o.isolation, "isolation", "", "")
	fs.Lookup("isolation").Hidden = true // Windows only; "default" is harmless
	fs.StringVar(&o.pid, "pid", "", "PID namespace to use")
	fs.StringVar(&o.uts, "uts", "", "UTS namespace to use")
	fs.StringVar(&o.runtime, "runtime", "", "Runtime to use for this container")
}
