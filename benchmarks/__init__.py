"""Measurements of Warren: each module has a `main(json_file)` that prints a table. Run `./warren bench`."""
