# Before the power goes: containers of every restart policy, on a disk.
mount /dev/vda /disk
export KEG_ROOT=/disk/keg
for policy in always unless-stopped no; do
	keg run -d --name $policy --restart $policy keg/shell sleep 1000
done
keg run -d --name stopped --restart unless-stopped keg/shell sleep 1000
keg stop -t 0 stopped
keg run -d --name failing --restart on-failure:3 -p 8081:80 keg/web
cat /proc/sys/kernel/random/boot_id > /disk/boot
sync
