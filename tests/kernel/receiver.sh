#!/bin/bash
# The receiver's machine: tests/kernel/receiver.sh PROJECT SHARED FILESYSTEM OPTIONS..., as root, in a guest.
#
# Mounts the disk, which replays the filesystem's journal, and runs `rsyncfs receive` with those options on it until the
# machine is killed. SHARED/receiver.log is what it logs.
set -euo pipefail
project=$1 shared=$2 filesystem=$3
shift 3
exec >>"$shared/machine.log" 2>&1 </dev/null
modules="virtio_blk virtio_net $filesystem"
. "$(dirname "$0")/world.sh"

wire=$(basename "$(dirname /sys/class/net/*/device)")
ip addr add 10.0.2.15/24 dev "$wire"
ip link set "$wire" up
mount -t "$filesystem" /dev/vda "$root/mnt"
mkdir -p "$root/mnt/root" "$root/mnt/state"
say "the disk is mounted"
inside .venv/bin/python -m replicator receive --root /mnt/root --state /mnt/state "$@" >>"$shared/receiver.log" 2>&1
say "the receiver has ended"
