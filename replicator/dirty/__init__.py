"""What is owed to the replica, and since when. No I/O."""
