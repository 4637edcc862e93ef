"""Every session has a directory of its own, below its owner's and nobody else's, whatever the names."""

import os
from pathlib import Path
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from sandbox.workspace import Workspaces
from storage.ids import USERNAME_PATTERN, SessionId, is_username

ROOT = Path("/workspaces")
usernames = st.from_regex(USERNAME_PATTERN, fullmatch=True)


@given(st.lists(st.tuples(usernames, st.uuids()), min_size=2, max_size=6, unique=True))
def test_no_two_users_share_a_directory_and_none_lies_in_anothers_or_outside(
    pairs: list[tuple[str, UUID]],
) -> None:
    workspaces = Workspaces(ROOT, Path("/on/the/docker/host"))
    sessions = [SessionId(*pair) for pair in pairs]
    for path_of, root in (
        (workspaces.path, workspaces.root),
        (workspaces.path_on_docker_host, workspaces.root_on_docker_host),
    ):
        paths = [path_of(session) for session in sessions]
        for session, path in zip(sessions, paths, strict=True):
            # As it stands, without resolving: nothing in a name leads up, or is hidden, or separates.
            assert path.relative_to(root).parts == (session.owner, str(session))
            assert Path(os.path.normpath(path)) == path
            assert not any(part.startswith(".") for part in path.relative_to(root).parts)
        # Also where a file system does not tell upper from lower case.
        assert len({str(path).casefold() for path in paths}) == len(paths)
        owners = {path.parent: session.owner for session, path in zip(sessions, paths, strict=True)}
        assert len(owners) == len({session.owner for session in sessions})
        assert not any(one in other.parents for one in paths for other in paths)


@given(st.text("az09-_./\\\0\n Aé\uff0f", max_size=34), st.uuids())
def test_a_name_that_would_lead_elsewhere_is_no_username(name: str, thread_id: UUID) -> None:
    path = Workspaces(ROOT, ROOT).path(SessionId(name, thread_id))
    stays = Path(os.path.normpath(path)) == path and path.parent.parent == ROOT and "\0" not in name
    assert stays or not is_username(name)
