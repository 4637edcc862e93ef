"""The command line: `./warren COMMAND`, see `./warren --help`.

Heavy imports wait until a command needs them, so that help and errors are immediate.
"""

import argparse
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 2024
"""langgraph dev's own, which clients expect."""
DEFAULT_JOBS = 10
DEFAULT_AUDIT_LINES = 50


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # What follows `test` is pytest's to read.
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
    if options.command in ("audit", "sandboxes", "users"):
        return _look_after(options)
    if options.command == "test":
        from server.checks import run_tests  # noqa: PLC0415

        return run_tests(rest)
    from server.bench import run_benchmarks  # noqa: PLC0415

    return run_benchmarks(options.name, options.json)


def _look_after(options: argparse.Namespace) -> int:
    if options.command == "audit":
        from server.audit import print_audit  # noqa: PLC0415

        return print_audit(options)
    if options.command == "sandboxes":
        from server.sandboxes import sandboxes  # noqa: PLC0415

        return sandboxes(options)
    from server.users import users  # noqa: PLC0415

    return users(options)


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

    _add_users(commands.add_parser("users", help="add, list, disable and enable users, set passwords"))

    _add_sandboxes(
        commands.add_parser(
            "sandboxes",
            help="list the sandboxes, or remove those out of use",
            description="Without a command: every sandbox that there is, its user, thread, state and memory, "
            "and when it was last used. Workspaces are never removed, they go with their threads.",
        )
    )

    _add_audit(
        commands.add_parser(
            "audit",
            help="print the audit log, the newest entry last",
            description="Everybody's entries, the newest last: who did what, what was refused, and who "
            "decided what on which tool call.",
        )
    )

    commands.add_parser(
        "test",
        help="run the linters and all tests, or pytest with the arguments given",
        description="Without arguments: ruff, mypy, import-linter and all tests. With arguments: pytest with "
        "them, for example ./warren test tests/unit -k ids.",
    )

    bench = commands.add_parser("bench", help="run the benchmarks and print their tables")
    bench.add_argument("name", nargs="?", metavar="NAME", help="only this one (default: all)")
    bench.add_argument("--json", type=_path, metavar="FILE", help="write the figures there, too")
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="port to listen on (default %(default)s)"
    )
    parser.add_argument(
        "--data-dir",
        type=_path,
        metavar="DIR",
        help="where secrets, Postgres and workspaces are (default: WARREN_DATA_DIR, else /var/lib/warren as "
        "root and ~/.local/state/warren otherwise)",
    )


def _add_users(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="users_command", required=True, metavar="COMMAND")
    named = {
        "add": "create an account, also where registration is closed",
        "passwd": "give a user a new password; ends their sessions and revokes their API keys",
        "disable": "refuse a user's logins, tokens and API keys, and stop their runs",
        "enable": "let a disabled user in again, by logging in or with their API keys",
    }
    for name, explanation in named.items():
        command = commands.add_parser(name, help=explanation)
        command.add_argument("name", metavar="NAME")
        if name in ("add", "passwd"):
            command.add_argument(
                "--password-stdin", action="store_true", help="read the password from standard input"
            )
    commands.add_parser("list", help="list all users")
    for command in commands.choices.values():
        command.add_argument("--data-dir", type=_path, metavar="DIR", help="where the embedded Postgres is")


def _add_sandboxes(parser: argparse.ArgumentParser) -> None:
    where = "where workspaces and the embedded Postgres are"
    parser.add_argument("--data-dir", type=_path, metavar="DIR", help=where)
    commands = parser.add_subparsers(dest="sandboxes_command", metavar="COMMAND")
    prune = commands.add_parser("prune", help="remove the containers of sandboxes out of use")
    which = prune.add_mutually_exclusive_group()
    which.add_argument(
        "--unused",
        type=_since,
        metavar="AGE",
        help="unused for so long: 30m, 12h, 7d or 4w (default: SANDBOX_IDLE_SECONDS)",
    )
    which.add_argument("--all", action="store_true", help="all, and what runs in them is lost")
    # Its default must not take the place of what stands before the sub-command.
    prune.add_argument("--data-dir", type=_path, metavar="DIR", default=argparse.SUPPRESS, help=where)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", metavar="NAME", help="only this user's")
    parser.add_argument("--event", help="only these, for example decision, denied or login_failed")
    parser.add_argument("--since", type=_since, metavar="AGE", help="only younger ones: 30m, 12h, 7d or 4w")
    parser.add_argument(
        "--limit",
        type=_positive,
        default=DEFAULT_AUDIT_LINES,
        metavar="N",
        help="the N latest (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, complete")
    parser.add_argument("--data-dir", type=_path, metavar="DIR", help="where the embedded Postgres is")


def _since(text: str) -> datetime:
    found = re.fullmatch(r"([1-9][0-9]{0,3})([mhdw])", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError("an age is a number and m, h, d or w: 30m, 12h, 7d, 4w")
    unit = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[found[2]]
    return datetime.now(UTC) - timedelta(**{unit: int(found[1])})


def _path(text: str) -> Path:
    # The launcher has moved to the project, and says where it was called.
    try:
        return Path(os.environ.get("WARREN_CALLER_DIR", ""), Path(text).expanduser()).absolute()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
