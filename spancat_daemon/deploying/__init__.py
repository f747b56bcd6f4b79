"""One deployment folder in this process's hands: what becomes live in it, what stays, who is told."""
