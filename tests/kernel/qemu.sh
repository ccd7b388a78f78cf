#!/bin/sh
# qemu for virtme-ng, which starts it as a child of its own: when that ends, however it ends, so does qemu.
exec setpriv --pdeathsig KILL "qemu-system-$(uname -m)" "$@"
