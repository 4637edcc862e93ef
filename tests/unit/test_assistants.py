"""What is saved of assistants is what Postgres takes."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from server.assistants import _from_json, _to_json


@pytest.mark.parametrize(
    ("description", "saved"),
    [("a\0\0b", "a��b"), ("\\\0", "\\�"), ("\\u0000", "\\u0000"), ("\\\\u0000", "\\\\u0000")],
)
def test_a_nul_in_a_description_keeps_nobodys_assistants_from_being_saved(
    description: str, saved: str
) -> None:
    assert json.loads(_to_json({"description": description})) == {"description": saved}


def test_what_is_saved_is_given_back_as_it_was() -> None:
    row = {"assistant_id": UUID(int=1), "created_at": datetime.now(UTC), "metadata": {"a": [1, None]}}
    assert _from_json(json.loads(_to_json(row))) == row
