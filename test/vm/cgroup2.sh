# Limits are set, and hold, on pure cgroup v2.
keg info | grep -i 'cgroup' | grep -q 2
test "$(keg run --rm -m 64m keg/shell cat /sys/fs/cgroup/memory.max)" = 67108864
test "$(keg run --rm --cpus 0.5 keg/shell cat /sys/fs/cgroup/cpu.max)" = "50000 100000"
test "$(keg run --rm --pids-limit 33 keg/shell cat /sys/fs/cgroup/pids.max)" = 33
# The container sees its own cgroup as the root, and cannot write to it.
test "$(keg run --rm keg/shell cat /proc/self/cgroup)" = 0::/
! keg run --rm keg/shell sh -c 'echo 1 > /sys/fs/cgroup/pids.max' 2>/dev/null
# Out of memory: 137, and recorded as such.
code=0
keg run --name oom -m 32m keg/shell sh -c 'x=$(yes | head -c 200000000)' >/dev/null 2>&1 || code=$?
test "$code" = 137
test "$(keg inspect --format '{{.State.OOMKilled}}' oom)" = true
keg rm oom
# exec joins the limits.
keg run -d --name web -m 64m -p 8080:80 keg/web
test "$(keg exec web cat /sys/fs/cgroup/memory.max)" = 67108864
wget -q -O - http://127.0.0.1:8080/ | grep -q 'It works'
keg rm -f web
# Nothing of ours is left once the last monitor has gone.
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	left=$(find /sys/fs/cgroup -type d -name 'keg*' 2>/dev/null || true) # one may go while it looks
	test -z "$left" && break
	sleep 0.3
done
test -z "$left"
