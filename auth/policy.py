"""What Warren does with every resource and action that the platform asks about: one table.

The handlers follow from it, and a test fails when the platform asks about something that is not in it.
"""

from enum import Enum, auto
from typing import Final


class Rule(Enum):
    """How one kind of event is judged."""

    DENY = auto()
    """Nobody may, whoever they are."""

    CLAIM = auto()
    """The thread becomes the caller's unless its id is taken; the owner is written on it."""

    OWN_THREAD = auto()
    """Only the thread's owner, as the registry says now."""

    OWN_THREAD_READ = auto()
    """Only the thread's owner, as the registry said at most one second ago."""

    OWN_RUN = auto()
    """Only the thread's owner, and the run is rewritten to carry nothing but what is allowed."""

    OWN_ASSISTANT = auto()
    """Only assistants that the caller has made; the owner is written on them."""

    SYSTEM_OR_OWN_ASSISTANT = auto()
    """The system's assistants, which are everybody's, and the caller's own."""

    OWN_NAMESPACE = auto()
    """Only namespaces of the store that begin with the caller's name."""


POLICY: Final[dict[tuple[str, str], Rule]] = {
    ("threads", "create"): Rule.CLAIM,
    ("threads", "read"): Rule.OWN_THREAD_READ,
    ("threads", "search"): Rule.OWN_THREAD_READ,
    ("threads", "update"): Rule.OWN_THREAD,
    ("threads", "delete"): Rule.OWN_THREAD,
    ("threads", "create_run"): Rule.OWN_RUN,
    ("assistants", "create"): Rule.OWN_ASSISTANT,
    ("assistants", "update"): Rule.OWN_ASSISTANT,
    ("assistants", "delete"): Rule.OWN_ASSISTANT,
    ("assistants", "read"): Rule.SYSTEM_OR_OWN_ASSISTANT,
    ("assistants", "search"): Rule.SYSTEM_OR_OWN_ASSISTANT,
    ("store", "put"): Rule.OWN_NAMESPACE,
    ("store", "get"): Rule.OWN_NAMESPACE,
    ("store", "search"): Rule.OWN_NAMESPACE,
    ("store", "delete"): Rule.OWN_NAMESPACE,
    ("store", "list_namespaces"): Rule.OWN_NAMESPACE,
    # A cron's runs are made by the scheduler from what was stored: they would go on after their owner has
    # logged out everywhere, been disabled or changed the password, and the in-memory runtime forgets them.
    ("crons", "create"): Rule.DENY,
    ("crons", "read"): Rule.DENY,
    ("crons", "update"): Rule.DENY,
    ("crons", "delete"): Rule.DENY,
    ("crons", "search"): Rule.DENY,
}
"""By resource and action, in the platform's words."""
