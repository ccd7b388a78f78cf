"""What is dirty and not yet durable on the replica, on disk: it survives the process."""
