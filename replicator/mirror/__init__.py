"""The replica: facts in, steps planned against its own inventory, system calls beneath one root, answers out."""
