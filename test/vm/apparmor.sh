# The default AppArmor profile is loaded when the first container needs it, and holds for run, exec and RUN.
mkdir -p a && cp /bin/busybox a/
printf 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\nRUN cat /proc/self/attr/current > /label\n' > a/Dockerfile
keg build -q -t boxed a
grep -q '^keg-default (enforce)' /sys/kernel/security/apparmor/profiles
keg run -d --name box --cap-add SYS_ADMIN boxed sleep 1000
test "$(keg exec box sh -c 'cat /label /proc/self/attr/current /proc/1/attr/current' | sort -u)" = "keg-default (enforce)"
# What it denies although the capability and the filter would allow it; a signal of the engine's passes.
! keg exec box mount -t tmpfs x /dev/shm 2>/dev/null
! keg exec box sh -c 'echo 1 > /sys/kernel/profiling' 2>/dev/null
keg exec box sh -c 'sleep 1000 & kill $!'
keg stop -t 1 box
keg rm box
# Without it, and with one of the host's own.
keg run --rm --security-opt apparmor=unconfined --cap-add SYS_ADMIN boxed sh -c 'mount -t tmpfs x /dev/shm && cat /proc/self/attr/current' | grep -q unconfined
printf 'profile web flags=(attach_disconnected) {\n  file,\n  signal,\n  deny /etc/secret r,\n}\n' | apparmor_parser -Kr
keg run --rm --security-opt apparmor=web boxed sh -c 'cat /proc/self/attr/current; mkdir -p /etc; echo x > /etc/secret; ! cat /etc/secret 2>/dev/null' | grep -q 'web (enforce)'
! keg run --rm --security-opt apparmor=no-such-profile boxed true 2>/dev/null
# A privileged container has none.
keg run --rm --privileged boxed cat /proc/self/attr/current | grep -q unconfined
