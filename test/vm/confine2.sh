# Device rules (eBPF), freezing, killing, live updates and the OCI runtime on pure cgroup v2.
mkdir -p c && cp /bin/busybox c/
printf 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n' > c/Dockerfile
keg build -q -t busy c
# Every container's devices work, a block device that it makes itself does not open.
test "$(keg run --rm busy head -c 3 /dev/zero | wc -c)" = 3
keg run --rm busy sh -c 'mknod /b b 254 0 && ! cat /b 2>/err && grep -q "not permitted" /err'
! keg run --rm busy sh -c 'mknod /k c 1 11 && cat /k' >/dev/null 2>&1
keg run --rm --device /dev/ttyS0 busy sh -c ': </dev/ttyS0'
! keg run --rm busy sh -c 'mknod /t c 4 64 && : </t' 2>/dev/null
# The same rules for exec.
keg run -d --name box -m 64m busy sh -c 'sleep 1000 & sleep 1000 & wait'
keg exec box sh -c 'mknod /b b 254 0 && ! cat /b 2>/dev/null'
g=/sys/fs/cgroup/keg/$(keg inspect --format '{{.Id}}' box)
test -d $g
# Freeze and thaw.
keg pause box
test "$(cat $g/cgroup.freeze)" = 1 && grep -q 'frozen 1' $g/cgroup.events
! keg exec box true 2>/dev/null
keg unpause box
test "$(cat $g/cgroup.freeze)" = 0
# Live limits.
keg update -m 96m --memory-swap 96m --pids-limit 44 --cpus 0.25 box
test "$(cat $g/memory.max $g/pids.max | tr '\n' ' ')" = "100663296 44 "
test "$(cat $g/cpu.max)" = "25000 100000"
# Kill reaches what the program forked.
keg kill box
for i in $(seq 100); do test -d $g || break; sleep 0.2; done
test ! -d $g
keg rm box
# An OOM in one container leaves its neighbour alone.
keg run -d --name calm busy sleep 1000
code=0
keg run --name hungry -m 24m busy sh -c 'tail -c 100000000 /dev/zero' >/dev/null 2>&1 || code=$?
test $code = 137
test "$(keg inspect --format '{{.State.OOMKilled}}' hungry)" = true
test "$(keg inspect --format '{{.State.Running}} {{.State.OOMKilled}}' calm)" = "true false"
keg rm -f hungry calm
# The runtime by itself.
mkdir -p b/rootfs/bin b/rootfs/proc b/rootfs/dev b/rootfs/sys && cp /bin/busybox b/rootfs/bin/busybox && ln -sf busybox b/rootfs/bin/sh
keg oci spec -b b
sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"sh","-c","busybox cat \/sys\/fs\/cgroup\/memory.max; busybox mknod \/dev\/b b 254 0; busybox cat \/dev\/b; exit 7"/; s/"resources": {/"resources": {"memory":{"limit":33554432},/' b/config.json
code=0
out=$(keg oci run -b b one 2>/dev/null) || code=$?
test "$code $out" = "7 33554432"
test ! -d /sys/fs/cgroup/keg-oci/one
# AppArmor, where the kernel has it: a profile that is not loaded is an error, not silence.
if test "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y; then
	keg run --rm --security-opt apparmor=unconfined busy cat /proc/self/attr/current | grep -q unconfined
	! keg run --rm --security-opt apparmor=no-such-profile busy true 2>/dev/null
	echo "AppArmor looked at"
fi
