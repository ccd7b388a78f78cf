"""rsyncfs: a live copy of a directory tree on another host, shipped byte range by byte range."""

__version__ = "0.1.0"
