"""The command line: `./warren COMMAND`, see `./warren --help`.

Heavy imports wait until a command needs them, so that help and errors are immediate.
"""

import argparse
import sys
from pathlib import Path

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 2024
"""langgraph dev's own, which clients expect."""
DEFAULT_JOBS = 10


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # What follows `test` and a benchmark's name is theirs to read.
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command != "test":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "serve":
        from server.serve import serve  # noqa: PLC0415

        return serve(options.host, options.port, options.data_dir, options.jobs)
    if options.command == "demo":
        from server.demo import demo  # noqa: PLC0415

        return demo()
    if options.command == "doctor":
        from server.doctor import doctor  # noqa: PLC0415

        return doctor(options.host, options.port, options.data_dir)
    if options.command == "test":
        from server.checks import run_tests  # noqa: PLC0415

        return run_tests(rest)
    from server.bench import run_benchmarks  # noqa: PLC0415

    return run_benchmarks(options.name, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="warren", description="Every user's own AI coding agents.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="set up what is missing, then serve until Ctrl-C")
    _add_place(serve)
    serve.add_argument(
        "--jobs",
        type=_positive,
        default=DEFAULT_JOBS,
        metavar="N",
        help="runs at a time (default %(default)s)",
    )

    commands.add_parser(
        "demo",
        help="play the main job with a real server, two users and a restart",
        description="Two users, two agents, two sandboxes, one restart, on a temporary data directory and a "
        "free port. Needs no model key. Exit code 0 only if every step held.",
    )

    _add_place(commands.add_parser("doctor", help="check every requirement and say how to fix what fails"))

    commands.add_parser(
        "test",
        help="run the linters and all tests, or pytest with the arguments given",
        description="Without arguments: ruff, mypy, import-linter and all tests. With arguments: pytest with "
        "them, for example ./warren test tests/unit -k ids.",
    )

    bench = commands.add_parser("bench", help="run the benchmarks and print their tables")
    bench.add_argument("name", nargs="?", metavar="NAME", help="only this one (default: all)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="port to listen on (default %(default)s)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where secrets, Postgres and workspaces are (default: WARREN_DATA_DIR, else /var/lib/warren as "
        "root and ~/.local/state/warren otherwise)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:  # noqa: PLR2004 - the range of a TCP port
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return number


if __name__ == "__main__":
    sys.exit(main())
