"""`./warren bench`: run the benchmarks, each a module of `benchmarks/` with a `main(json_file)`."""

import importlib
import sys
from pathlib import Path

from server.serve import PROJECT


def run_benchmarks(name: str | None, json_file: Path | None) -> int:
    """Run one benchmark, or all of them. Returns the exit code.

    With several, `json_file` is given to each with its name added before the suffix.
    """
    available = sorted(
        path.stem for path in (PROJECT / "benchmarks").glob("*.py") if not path.stem.startswith("_")
    )
    if name is not None and name not in available:
        print(f"warren: no benchmark {name!r}; there is: {', '.join(available)}", file=sys.stderr)  # noqa: T201
        return 2
    for one in [name] if name else available:
        target = json_file
        if json_file is not None and name is None:
            target = json_file.with_stem(f"{json_file.stem}-{one}")
        importlib.import_module(f"benchmarks.{one}").main(target)
    return 0
