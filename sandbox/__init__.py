"""Where a thread's commands run: one hardened Docker container per thread."""
