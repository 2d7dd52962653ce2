# Every limit of run's as pure cgroup v2 has it, on a disk, and where processes are born.
keg run -d --name box -m 64m --memory-reservation 32m --memory-swap 96m --cpu-shares 512 --cpuset-cpus 0 --cpu-period 50000 --cpu-quota 25000 \
	--pids-limit 20 --device-write-bps /dev/vda:1mb --device-read-iops /dev/vda:50 --oom-score-adj 77 --cgroup-parent /team keg/shell sleep 1000
g=/sys/fs/cgroup/team/$(keg inspect --format '{{.Id}}' box)
pid=$(keg inspect --format '{{.State.Pid}}' box)
test "$(cat $g/memory.max $g/memory.low $g/memory.swap.max | tr '\n' ' ')" = "67108864 33554432 33554432 "
test "$(cat $g/cpu.weight $g/cpuset.cpus $g/pids.max | tr '\n' ' ')" = "59 0 20 "
test "$(cat $g/cpu.max)" = "25000 50000"
grep -q 'wbps=1048576' $g/io.max && grep -q 'riops=50' $g/io.max
test "$(cat /proc/$pid/oom_score_adj)" = 77
# The program and those that enter are born in the group, and see it as the root.
test "$(cat /proc/$pid/cgroup)" = "0::/team/$(basename $g)"
test "$(keg exec box cat /proc/self/cgroup)" = 0::/
# The monitor is in a group of its own, and so unharmed by what follows.
monitor=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$pid/status)
! grep -q "$(basename $g)" /proc/$monitor/cgroup
# A fork bomb stops at the limit.
keg exec box sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 1000 & done; wait' >/dev/null 2>&1 &
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	grep -q 'max [1-9]' $g/pids.events && break
	sleep 0.5
done
grep -q 'max [1-9]' $g/pids.events
test "$(cat $g/pids.current)" -le 20
# cgroup.kill ends them all at once.
test -d /proc/$monitor
keg rm -f box
test ! -d $g
