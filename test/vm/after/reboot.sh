# After the power came back: what ran has ended and says so, nobody's process is taken for a container's, and
# what the policies say runs again.
mount /dev/vda /disk
export KEG_ROOT=/disk/keg
! cmp -s /disk/boot /proc/sys/kernel/random/boot_id
test "$(keg ps -q | wc -l)" = 0
test "$(keg inspect --format '{{.State.Status}} {{.State.ExitCode}}' no)" = "exited 137"
keg start --boot
test "$(keg ps --format '{{.Names}}' | sort | tr '\n' ' ')" = "always failing unless-stopped "
test "$(keg inspect --format '{{.State.Status}}' stopped)" = exited
# The server inside listens a moment after its container runs.
for i in 1 2 3 4 5 6 7 8 9 10; do
	wget -q -O - http://127.0.0.1:8081/ | grep -q 'It works' && break
	test $i != 10
	sleep 1
done
keg start no
keg rm -f always unless-stopped no stopped failing >/dev/null
test -z "$(find /sys/fs/cgroup/keg -mindepth 1 -type d 2>/dev/null)"
