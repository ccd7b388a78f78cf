"""What the end-to-end tests stand on: filesystems, an oracle, both ends of a replication, networks, certificates."""
