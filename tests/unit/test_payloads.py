"""What no body may hold is found wherever the platform would, and nothing else is taken for it."""

import json

import pytest

from server.payloads import MAX_GOTO, MAX_TOOL_CALLS, objection, query_objection

CALLS = {"messages": [{"additional_kwargs": {"tool_calls": [{}] * (MAX_TOOL_CALLS + 1)}}]}


@pytest.mark.parametrize(
    "body",
    [
        rb'{"metadata": {"a": "\u0000"}}',
        rb'{"metadata": {"a\u0000": 1}}',
        rb'{"a": "\\\u0000"}',
        b'{"webhook": "http://10.0.0.1/"}',
        rb'{"web\u0068ook": "http://10.0.0.1/"}',
        b'{"params": {"webhook": "http://10.0.0.1/"}}',
        b'{"feedback_keys": ["a"]}',
        b'{"webhook": null, "feedback_keys": ["a"]}',
        b"[" + b"[]," * 300_000 + b"[]]",
        b"[" * 101 + b"]" * 101,
        b'{"input": ' + b'{"a": [' * 5_000 + b"]}" * 5_000 + b"}",
        b'{"checkpoint_id": true}',
        b'{"checkpoint": {"checkpoint_id": 7}}',
        b'{"checkpoint": {"checkpoint_id": "a", "owner": "alice"}}',
        b'{"langsmith_tracer": "x"}',
        b'{"input": {"messages": 1}}',
        b'{"values": {"messages": true}}',
        json.dumps({"command": {"goto": ["model"] * (MAX_GOTO + 1)}}).encode(),
        rb'{"params": {"command": {"\u0067oto": [1, 2, 3, 4, 5]}}}',
        json.dumps({"input": {"messages": [{"tool_calls": [{}] * (MAX_TOOL_CALLS + 1)}]}}).encode(),
        json.dumps({"supersteps": [{"updates": [{"values": CALLS}]}]}).encode(),
        json.dumps({"command": {"update": CALLS}}).encode(),
        b'{"input": {"messages": [' + b'{"role": "user"},' * 20_000 + b"{}]}}",
    ],
)
def test_what_must_not_come_in_is_refused(body: bytes) -> None:
    assert objection(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"webhook": null}',
        b'{"webhook": "", "feedback_keys": []}',
        b'{"input": {"messages": [{"role": "user", "content": "write a webhook"}]}}',
        rb'{"content": "in JSON \\u0000 is a NUL"}',
        rb'{"content": "caf\u00e9"}',
        b"[1, 2]",
        b"webhook",
        b"[" * 100 + b"]" * 100,
        json.dumps(
            {"checkpoint": dict.fromkeys(["thread_id", "checkpoint_id", "checkpoint_ns"], "x")}
        ).encode(),
        b'{"checkpoint": null, "checkpoint_id": null, "langsmith_tracer": {}}',
        json.dumps({"command": {"goto": ["model"] * MAX_GOTO}}).encode(),
        json.dumps({"value": {**CALLS, "goto": [1] * 10, "checkpoint_id": 1}}).encode(),
        json.dumps({"content": "a,b,[{" * 20_000}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "a"}] * 5_000}).encode(),
        json.dumps({"params": ["webhook"]}).encode(),
    ],
)
def test_what_is_harmless_or_no_json_goes_on(body: bytes) -> None:
    assert objection(body) is None


@pytest.mark.parametrize(
    "query",
    [
        b"limit=-1",
        b"limit=",
        b"limit=1&limit=x",
        b"offset=1e9",
        b"limit=" + b"9" * 30,
        b"before=%00",
        b"limit=%d9%a1",
    ],
)
def test_a_query_that_the_platform_fails_on_is_refused(query: bytes) -> None:
    assert query_objection(query)


@pytest.mark.parametrize(
    "query", [b"", b"limit=10&offset=0", b"before=a%20b&x", b"wait=1", b"%ff=%fe", b"&&=&"]
)
def test_any_other_query_goes_on(query: bytes) -> None:
    assert query_objection(query) is None
