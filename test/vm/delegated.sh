# An ordinary user's limits hold in the cgroup that the host gave to him, as systemd gives one; outside of it keg says so.
mount /dev/vda /disk
chmod 1777 /tmp
mkdir -p /disk/ann && chown 1000:1000 /disk/ann
echo 'ann:x:1000:1000::/disk/ann:/bin/sh' >>/etc/passwd
echo 'ann:x:1000:' >>/etc/group
given=/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service
scope=$given/app.slice/run-1.scope
session=/sys/fs/cgroup/user.slice/user-1000.slice/session-1.scope
mkdir -p $scope $session
for d in /sys/fs/cgroup /sys/fs/cgroup/user.slice /sys/fs/cgroup/user.slice/user-1000.slice; do
	for c in cpu memory pids; do echo +$c >$d/cgroup.subtree_control; done
done
for d in $given $given/app.slice $scope; do chown 1000:1000 $d $d/cgroup.procs $d/cgroup.subtree_control $d/cgroup.threads; done
ann() { (echo 0 >$1/cgroup.procs && exec su ann -c "$2"); }
# In the session: said in one sentence, and the container runs.
ann $session 'keg run --rm --network none -m 64m keg/shell echo alive' >out 2>err || { cat err; false; }
grep -q alive out
grep -q 'Limits .* have no effect.*systemd-run --user --scope' err
! ann $session 'keg info' 2>/dev/null | grep -q 'processes apply'
sleep 2 # the keeper of the session ends
# Where the user has a cgroup: limits apply, can be changed, are entered by exec, and freeze.
ann $scope 'keg info' | grep -q "Limits of memory, processors and processes apply, in the host's cgroup /user.slice/user-1000.slice/user@1000.service"
ann $scope 'keg run -d --name box --network none -m 64m --pids-limit 33 --cpus 0.5 keg/shell sleep 1000'
id=$(ann $scope 'keg inspect --format "{{.Id}}" box')
g=$given/keg/$id
test "$(cat $g/memory.max $g/pids.max | tr '\n' ' ')" = "67108864 33 "
test "$(cat $g/cpu.max)" = "50000 100000"
test -n "$(cat $g/cgroup.procs)"
ann $scope 'keg exec box cat /sys/fs/cgroup/memory.max' | grep -qx 67108864
ann $scope 'keg pause box' && grep -q 'frozen 1' $g/cgroup.events
ann $scope 'keg unpause box'
ann $scope 'keg update -m 96m --memory-swap 96m box'
test "$(cat $g/memory.max)" = 100663296
ann $scope 'keg stats --no-stream box' | grep -q box
# The session sees and ends it, too.
ann $session 'keg ps -q' | grep -q .
ann $session 'keg rm -f box'
for i in $(seq 100); do test -d $given/keg || break; sleep 0.2; done
test ! -d $given/keg
code=0
ann $scope 'keg run --name hungry --network none -m 32m keg/shell sh -c "x=\$(yes | head -c 200000000)"' >/dev/null 2>&1 || code=$?
test "$code" = 137
test "$(ann $scope 'keg inspect --format "{{.State.OOMKilled}}" hungry')" = true
ann $scope 'keg rm hungry'
sleep 2
umount /disk
