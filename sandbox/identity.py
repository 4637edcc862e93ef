"""Whose run this is. The one place that says which parts of a run's config can be believed."""

from uuid import UUID

from langgraph.config import get_config

from sandbox.errors import NoIdentityError
from storage.errors import InvalidThreadIdError
from storage.ids import SessionId, is_username, parse_thread_id


def current_identity() -> SessionId:
    """Read the identity that the server stamped on the current run.

    Only two keys of `configurable` are the server's own word: it sets them after the client's. Anything else
    there, and all of metadata, context and state, is what a client says of itself.

    Raises:
        NoIdentityError: outside a run, or in one that was started without a user or a thread.
    """
    try:
        configurable = get_config().get("configurable", {})
    except RuntimeError:  # langgraph: not within a run
        raise NoIdentityError from None
    owner = configurable.get("langgraph_auth_user_id")
    thread = configurable.get("thread_id")
    if not isinstance(owner, str) or not is_username(owner) or not isinstance(thread, str | UUID):
        raise NoIdentityError
    try:
        return SessionId(owner, parse_thread_id(str(thread)))
    except InvalidThreadIdError:
        raise NoIdentityError from None
