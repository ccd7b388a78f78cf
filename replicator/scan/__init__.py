"""The third sensor: which inodes there are and when they changed, without walking the tree where that can be."""

from replicator.scan.row import INODE, Scan
from replicator.scan.select import fetch_ahead, scan

__all__ = ["INODE", "Scan", "fetch_ahead", "scan"]
