"""rsyncfs: a live copy of a directory tree on another host, shipped byte range by byte range."""

import os

__version__ = "0.1.0"

# numpy does no linear algebra here: threads for that would only cost each start their beginning.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
