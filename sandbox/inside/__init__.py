"""Programs that run inside a sandbox, on its own Python: one file each, standard library only."""
