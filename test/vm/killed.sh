# kill -9 of the monitor: the container is gone, recorded as such, nothing leaks.
keg run -d --name victim keg/shell sleep 1000
pid=$(keg inspect --format '{{.State.Pid}}' victim)
monitor=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$pid/status)
kill -9 $monitor
for i in $(seq 100); do test -d /proc/$pid || break; sleep 0.2; done
test ! -d /proc/$pid
test "$(keg inspect --format '{{.State.Status}} {{.State.ExitCode}}' victim)" = "exited 137"
keg start victim
keg rm -f victim
test -z "$(keg ps -aq)"
