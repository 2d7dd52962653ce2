# firewall.sh FIREWALL: a container behind Docker's rules, ufw or firewalld, as seen by a neighbour.
# Runs in network, mount and process namespaces of its own; KEG is the program, TMP its directory.
set -eu
export KEG_ROOT=$TMP/root KEG_RUN_ROOT=$TMP/run
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/dbus
ip link set lo up
ip netns add out
ip link add v-in type veth peer name v-out
ip link set v-out netns out
ip addr add 10.200.0.1/24 dev v-in
ip link set v-in up
ip -n out addr add 10.200.0.2/24 dev v-out
ip -n out link set v-out up
ip -n out link set lo up
ip -n out route add default via 10.200.0.1
echo neighbour >$TMP/index.html
ip netns exec out busybox httpd -p 81 -h $TMP

fail() { echo "FAIL: $*"; exit 1; }
# A published port is reached from the neighbour, and the neighbour from the container.
works() {
	ip netns exec out curl -fsS --retry 20 --retry-delay 1 --retry-all-errors -m 5 -o /dev/null http://10.200.0.1:$2/ || fail "$1: port $2 is not reached"
	$KEG exec web wget -T 5 -qO- http://10.200.0.2:81/ | grep -q neighbour || fail "$1: the neighbour is not reached"
	echo "ok: $1"
}
start() { $KEG run -d --name web -p 18080:80 keg/web >/dev/null; }

case $1 in
ufw)
	cp -a /etc/ufw $TMP/ufw
	cp /etc/default/ufw $TMP/default
	mount --bind $TMP/ufw /etc/ufw
	mount --bind $TMP/default /etc/default/ufw
	ufw --force enable
	start
	works "started behind ufw" 18080
	ufw reload
	works "after ufw reload" 18080
	ufw --force disable
	works "ufw disabled" 18080
	ufw --force enable
	works "enabled again" 18080
	$KEG network reload
	works "after network reload" 18080
	# What ufw denies stays denied: the host's own port, which nobody published.
	busybox httpd -p 10.200.0.1:82 -h $TMP
	! ip netns exec out curl -sS -m 2 http://10.200.0.1:82/ 2>/dev/null || fail "ufw no longer denies"
	;;
firewalld)
	dbus-daemon --system --nofork --nopidfile 2>/dev/null &
	firewalld --nofork --nopid >$TMP/firewalld.log 2>&1 &
	for i in $(seq 100); do firewall-cmd --state >/dev/null 2>&1 && break; sleep 0.2; done
	firewall-cmd --state || { cat $TMP/firewalld.log; fail "firewalld does not start"; }
	start
	works "started behind firewalld" 18080
	firewall-cmd --reload
	$KEG network reload
	works "after firewalld's and our reload" 18080
	busybox httpd -p 10.200.0.1:82 -h $TMP
	! ip netns exec out curl -sS -m 2 http://10.200.0.1:82/ 2>/dev/null || fail "firewalld no longer rejects"
	;;
docker)
	docker="docker -H unix://$TMP/sock"
	serve() {
		dockerd -H unix://$TMP/sock --data-root $TMP/data --exec-root $TMP/exec --pidfile $TMP/pid --storage-driver overlay2 --live-restore >>$TMP/dockerd.log 2>&1 &
		daemon=$!
		for i in $(seq 150); do $docker version >/dev/null 2>&1 && return; sleep 0.2; done
		tail -5 $TMP/dockerd.log
		fail "Docker's engine does not start"
	}
	start # before Docker closes forwarding
	serve
	$KEG save -o $TMP/web.tar keg/web
	$docker load -q -i $TMP/web.tar
	$docker run -d --name theirs -p 18081:80 keg/web >/dev/null
	$KEG network reload
	works "a container from before Docker, after network reload" 18080
	works "Docker's own beside it" 18081
	$KEG rm -f web >/dev/null
	start
	works "started beside Docker" 18080
	kill $daemon
	wait $daemon || true
	serve
	works "after Docker's restart" 18080
	works "Docker's own after it" 18081
	$KEG rm -f web >/dev/null
	sleep 1.5
	ip netns exec out curl -fsS -m 5 -o /dev/null http://10.200.0.1:18081/ || fail "Docker's port went with ours"
	echo "ok: Docker's own after ours went"
	$docker rm -f theirs >/dev/null
	kill $daemon
	wait $daemon || true
	;;
esac
$KEG rm -f web >/dev/null 2>&1 || true
for i in $(seq 30); do nft list ruleset | grep -qi keg || break; sleep 0.2; done
nft list ruleset | grep -i keg && fail "rules are left"
$KEG rmi -f keg/web >/dev/null
echo done
