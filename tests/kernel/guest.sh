#!/bin/bash
# What runs inside a guest: tests/kernel/guest.sh PROJECT SHARED, as root, on the kernel to be tested.
#
# SHARED is the host's directory, writable. The host's root is mounted once more, with a cache (without one, a Python
# process reads all its files anew), below a tmpfs that takes what is written; the tests run with that as their root. For
# each run of SHARED/runs ("NAME: VARIABLES -- TESTS") SHARED/NAME.log is pytest's output, SHARED/NAME.jsonl the outcomes,
# and SHARED/NAME.done its exit code, there when it is over.
set -euo pipefail
project=$1 shared=$2
exec >"$shared/machine.log" 2>&1 </dev/null
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
say() {
	echo "$(cut -d ' ' -f 1 /proc/uptime) s: $*"
}
trap 'say "line $LINENO failed"; dmesg >"$shared/dmesg.log"' ERR

say "$(uname -r) is up"
modprobe -a 9p 9pnet_virtio overlay loop ext4 xfs btrfs
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

# The host compiles faster (tests/kernel/compiling.py). It is not waited for longer than it takes to do it here.
mkdir "$shared/btf.new"
for types in vmlinux ext4 xfs btrfs iomap; do
	[ ! -e /sys/kernel/btf/$types ] || cp /sys/kernel/btf/$types "$shared/btf.new"
done
mv "$shared/btf.new" "$shared/btf"
touch "$shared/btf.done"
for ((tenths = 0; tenths < 3000; tenths++)); do
	[ ! -e "$shared/cache.done" ] || break
	sleep 0.1
done
say "programs are there after $tenths tenths of a second"
[ ! -e "$shared/cache" ] || cp -r "$shared/cache" $root/var/cache/rsyncfs

# Run a command in the project with that root. In a mere chroot the kernel makes no user namespaces.
inside() {
	unshare --mount sh -euc 'mount --make-rprivate /; cd "$1"; mkdir -p run/old; pivot_root . run/old; umount -l /run/old
		cd "$2"; shift 2; exec "$@"' sh $root "$project" "$@"
}

while IFS= read -r line <&3; do
	name=${line%%:*} words=${line#*:}
	say "$name begins"
	code=0
	inside env ${words%%--*} .venv/bin/python -m pytest -p tests.kernel.record \
		-p no:hypothesispytest -p no:cacheprovider -o faulthandler_timeout=0 --records "$shared/$name.jsonl" \
		--tb=short ${words#*--} >"$shared/$name.log" 2>&1 || code=$?
	echo $code >"$shared/$name.done.new"
	mv "$shared/$name.done.new" "$shared/$name.done"
	say "$name ended with $code"
done 3<"$shared/runs"
dmesg >"$shared/dmesg.log"
