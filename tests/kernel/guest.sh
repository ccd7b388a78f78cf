#!/bin/bash
# What runs inside a guest: tests/kernel/guest.sh PROJECT SHARED, as root, on the kernel to be tested.
#
# SHARED is the host's directory, writable. The tests run in the root of world.sh. For each run of SHARED/runs
# ("NAME: VARIABLES -- TESTS") SHARED/NAME.log is pytest's output, SHARED/NAME.jsonl the outcomes, and SHARED/NAME.done
# its exit code, there when it is over.
set -euo pipefail
project=$1 shared=$2
exec >"$shared/machine.log" 2>&1 </dev/null
modules="loop ext4 xfs btrfs"
. "$(dirname "$0")/world.sh"

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
