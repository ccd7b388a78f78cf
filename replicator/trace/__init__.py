"""`trace`: the writes below a directory, shown as they happen."""
