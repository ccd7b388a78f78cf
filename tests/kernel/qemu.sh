#!/bin/sh
# qemu for virtme-ng, which starts it as a child of its own: when that ends, however it ends, so does qemu.
machine=$(uname -m)
if [ "$machine" = x86_64 ]; then
	# The emulator goes byte by byte where the kernel takes the processor to move memory fast, and walks page tables of five
	# levels where four do.
	set -- "$@" -cpu max,erms=off,fsrm=off,la57=off
fi
# A wake-up by descriptor for each of hundreds of queues, all of them polled each time, is dearer than none.
exec setpriv --pdeathsig KILL "qemu-system-$machine" "$@" \
	-global virtio-serial-pci.ioeventfd=off -global virtio-9p-pci.ioeventfd=off
