"""What happens again and again is counted instead of written."""

from uuid import UUID

from storage.audit_window import (
    DENIED,
    EGRESS,
    EGRESS_REFUSED,
    MAX_DENIALS,
    MAX_KINDS,
    MAX_REPEATS,
    MAX_TARGETS,
    Occurrence,
    Window,
)


def denial(username: str | None, route: str = "/threads/{uuid}", address: str = "::1") -> Occurrence:
    return Occurrence(DENIED, username, address, {"method": "GET", "route": route, "status": 403})


def test_the_same_denial_has_one_row_and_a_sum() -> None:
    window = Window()
    assert [window.admit(denial("bob")) for _ in range(1_000)] == [True] + [False] * 999
    [summary] = window.summaries()
    assert summary.details == {"method": "GET", "route": "/threads/{uuid}", "status": 403, "repeated": 999}
    assert summary.username == "bob"


def test_a_user_is_one_subject_wherever_they_call_from() -> None:
    window = Window()
    assert [window.admit(denial("bob", address=f"::{number}")) for number in range(3)] == [True, False, False]


def test_a_sweep_of_routes_has_few_rows_and_a_sum() -> None:
    window = Window()
    rows = sum(window.admit(denial("bob", route=f"/{number}")) for number in range(1_000))
    [summary] = window.summaries()
    assert rows == MAX_DENIALS
    assert (summary.username, summary.details["repeated"]) == ("bob", 1_000 - MAX_DENIALS)


def test_one_clients_flood_hides_neither_anothers_denial_nor_other_events() -> None:
    window = Window()
    for number in range(100_000):
        window.admit(denial(None, route=f"/{number % 50}"))
    assert window.admit(denial("bob"))
    assert window.admit(Occurrence("password_changed", "bob", "::1", {}))


def test_a_flood_from_many_addresses_has_bounded_rows_and_memory() -> None:
    window = Window()
    rows = sum(window.admit(denial(None, address=f"::{number:x}")) for number in range(20_000))
    summaries = window.summaries()
    assert rows == MAX_KINDS
    assert [(summary.username, summary.details["repeated"]) for summary in summaries] == [(None, 19_500)]
    assert len(window._counts) == MAX_KINDS + 1
    assert len(window._different) <= MAX_KINDS


def test_other_events_of_one_subject_are_bounded_as_well() -> None:
    window = Window()
    made = Occurrence("key_created", "bob", "::1", {"name": "x"})
    assert sum(window.admit(made) for _ in range(100)) == MAX_REPEATS
    [summary] = window.summaries()
    assert summary.details == {"repeated": 100 - MAX_REPEATS}


def dial(target: str, thread: int = 1, event: str = EGRESS) -> Occurrence:
    return Occurrence(event, "bob", None, {"target": target}, UUID(int=thread))


def test_a_sandboxs_connections_are_told_apart_by_host_and_thread_and_their_repetitions_counted() -> None:
    window = Window()
    dials = [
        dial("pypi.org:443"),
        dial("pypi.org:443"),
        dial("pypi.org:443", thread=2),
        dial("evil.example:443"),
    ]
    assert [window.admit(it) for it in dials] == [True, False, True, True]
    [summary] = window.summaries()
    assert summary == dial("pypi.org:443")._replace(details={"target": "pypi.org:443", "repeated": 1})


def test_a_sandbox_that_asks_for_ever_new_hosts_fills_no_table_and_hides_no_allowed_host() -> None:
    window = Window()
    rows = sum(window.admit(dial(f"{n}.example:443", event=EGRESS_REFUSED)) for n in range(10_000))
    assert rows == MAX_TARGETS
    assert window.admit(dial("pypi.org:443"))
    [summary] = window.summaries()
    assert (summary.username, summary.details["repeated"]) == ("bob", 10_000 - MAX_TARGETS)
