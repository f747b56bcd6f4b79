"""What is told of a swap: programs, systemd, processes, addresses."""
