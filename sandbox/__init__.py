"""Where a thread's commands run."""
