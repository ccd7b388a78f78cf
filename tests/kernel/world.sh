# What every guest begins with, sourced: the root in which things run there, and `inside` to run them.
#
# Wants `project` and `shared`, and `modules` that the kernel is to load besides. The host's root is mounted once more,
# with a cache (without one, a Python process reads all its files anew), below a tmpfs that takes what is written.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
say() {
	echo "$(cut -d ' ' -f 1 /proc/uptime) s: $*"
}
trap 'say "line $LINENO failed"; dmesg >"$shared/dmesg.log"' ERR

say "$(uname -r) is up"
# shellcheck disable=SC2086
modprobe -a 9p 9pnet_virtio overlay ${modules:?}
root=/run/whole/root
mkdir -p /run/whole
mount -t tmpfs -o size=80%,mode=755 tmpfs /run/whole
mkdir /run/whole/{host,upper,work,root}
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose whole /run/whole/host
mount -t overlay -o "lowerdir=/run/whole/host,upperdir=/run/whole/upper,workdir=/run/whole/work" overlay $root
# A project below one of the directories that begin empty stays visible.
mkdir /run/whole/project
mount --bind "$root$project" /run/whole/project
for place in /run /tmp /var/tmp /var/lib /var/cache; do
	mount -t tmpfs -o size=80%,mode=1777 tmpfs "$root$place"
done
mkdir -p "$root$project" "$root$shared"
mount --bind /run/whole/project "$root$project"
mount --bind "$shared" "$root$shared"

mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p $root/usr/lib/modules
for place in /proc /sys /dev /usr/lib/modules; do
	mount --rbind $place $root$place
done
ip link set lo up

# Run a command in the project with that root. In a mere chroot the kernel makes no user namespaces.
inside() {
	unshare --mount sh -euc 'mount --make-rprivate /; cd "$1"; mkdir -p run/old; pivot_root . run/old; umount -l /run/old
		cd "$2"; shift 2; exec "$@"' sh $root "$project" "$@"
}
