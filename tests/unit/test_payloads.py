"""What no body may hold is found wherever the platform would, and nothing else is taken for it."""

import json

import pytest

from server.payloads import objection


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
        b'{"webhook": ' + b"[" * 10_000,
        json.dumps({"content": "a,b,[{" * 20_000}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "a"}] * 5_000}).encode(),
        json.dumps({"params": ["webhook"]}).encode(),
    ],
)
def test_what_is_harmless_or_no_json_goes_on(body: bytes) -> None:
    assert objection(body) is None
