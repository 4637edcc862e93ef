"""What the authorization matrix puts into the fields of its requests, by their names.

When a field is new, `UnknownFieldError` says what to add here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

Schema = Mapping[str, Any]
SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "recall"}]}


class UnknownFieldError(Exception):
    """The matrix does not know what to put into a field.

    Add it in tests/integration/matrix_fields.py: to NAMED if it may hold an id or a name of somebody's
    thing (and to SUBJECTS in matrix_routes.py if the request acts on that thing), to PLAIN otherwise.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r}: {self.__doc__}")


@dataclass(frozen=True)
class Things:
    """What somebody has, as requests name it."""

    user: str
    password: str
    thread_id: str
    run_id: str
    checkpoint_id: str
    assistant_id: str
    key_id: str
    item: str
    """The key of an item in the store, and the second label of its namespace."""

    def ids(self) -> frozenset[str]:
        ids = (self.thread_id, self.run_id, self.checkpoint_id, self.assistant_id, self.key_id, self.item)
        return frozenset(ids)

    @property
    def session_id(self) -> str:
        return f"{self.user}-{self.thread_id}"

    @property
    def namespace(self) -> list[str]:
        return [self.user, self.item]

    @property
    def checkpoint(self) -> dict[str, Any]:
        return {
            "thread_id": self.thread_id,
            "checkpoint_ns": "",
            "checkpoint_id": self.checkpoint_id,
            "checkpoint_map": {"": self.checkpoint_id},
        }

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "owner": self.user,
            "thread_id": self.thread_id,
            "assistant_id": self.assistant_id,
            "langgraph_auth_user_id": self.user,
            "$or": [{"owner": self.user}],
        }

    @property
    def config(self) -> dict[str, Any]:
        identity = {"identity": self.user, "display_name": self.user, "is_authenticated": True}
        configurable = {
            **self.checkpoint,
            "run_id": self.run_id,
            "assistant_id": self.assistant_id,
            "user_id": self.user,
            "langgraph_auth_user_id": self.user,
            "langgraph_auth_user": identity,
        }
        return {"configurable": configurable, "metadata": self.metadata}

    @property
    def command(self) -> dict[str, Any]:
        """The parameters of any command of the platform's event protocol."""
        return {
            "assistant_id": self.assistant_id,
            "input": SAID,
            "config": {"configurable": self.checkpoint},
            "metadata": self.metadata,
            "interrupt_id": self.run_id,
            "response": {"decisions": [{"type": "approve"}]},
            "run_id": self.run_id,
            "thread_id": self.thread_id,
        }


NOBODYS = Things("system", "no password of anyone's", *(str(uuid4()) for _ in range(6)))

NAMED: dict[str, Callable[[Things], Any]] = {
    "thread_id": lambda things: things.thread_id,
    "thread_ids": lambda things: [things.thread_id],
    "ids": lambda things: [things.thread_id],
    "run_id": lambda things: things.run_id,
    "run_ids": lambda things: [things.run_id],
    "checkpoint_id": lambda things: things.checkpoint_id,
    "checkpoint": lambda things: things.checkpoint,
    "before": lambda things: things.checkpoint,
    "assistant_id": lambda things: things.assistant_id,
    "session_id": lambda things: things.session_id,
    "key_id": lambda things: things.key_id,
    "interrupt_id": lambda things: things.checkpoint_id,
    "cron_id": lambda things: things.run_id,
    "operation_id": lambda things: things.run_id,
    "key": lambda things: things.item,
    "namespace": lambda things: things.namespace,
    "namespace_prefix": lambda things: things.namespace,
    "prefix": lambda things: things.namespace,
    "suffix": lambda things: [things.item],
    "filter": lambda things: {"$or": [{"owner": {"$eq": things.user}}, {"owner": things.user}]},
    "metadata": lambda things: things.metadata,
    "config": lambda things: things.config,
    "context": lambda things: things.config["configurable"],
    "params": lambda things: things.command,
    "username": lambda things: things.user,
}
"""Fields that may hold an id, in path, query or body, and the value that names somebody's thing."""

IN_QUERY: dict[str, Callable[[Things], Any]] = {
    "namespace": lambda things: ".".join(things.namespace),
    "before": lambda things: things.checkpoint_id,
}
"""Those whose value is another one in a query."""

SECRETS = frozenset({"password", "current_password", "new_password"})
"""The caller knows their own, and nobody else's."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "action": ("approve",),
    "args": ({},),
    "as_node": ("model",),
    "channels": (["values", "messages"],),
    "command": ({"update": SAID}, {"goto": "model"}, {"resume": {"decisions": []}}),
    "decisions": ([{"action": "approve"}],),
    "description": ("",),
    "end_time": ("2999-01-01T00:00:00Z",),
    "event": ("login",),
    "extract": ({"said": "values.messages[0].content"},),
    "feedback_keys": ([],),
    "format": ("json",),
    "graph_id": ("agent",),
    "include": ("ttl",),
    "index": (False,),
    "input": (SAID,),
    "interrupt_after": ("*",),
    "interrupt_before": ("*",),
    "message": ("recall",),
    "method": ("run.start", "input.respond", "agent.getTree", "subscription.subscribe"),
    "name": ("a name",),
    "namespaces": ([[]],),
    "query": ("x",),
    "schedule": ("* * * * *",),
    "stream_mode": ("values", "debug"),
    "stream_modes": ("run_modes", "state_update"),
    "supersteps": ([{"updates": [{"values": SAID, "as_node": "model"}]}],),
    "timezone": ("UTC",),
    "ttl": ({"strategy": "delete", "ttl": 1000},),
    "value": ({"note": "x"},),
    "values": (SAID,),
    "webhook": ("http://127.0.0.1:9/",),
    "xray": (True,),
}
"""Fields that hold no id, and the values worth trying."""

PLAIN_IN_PATH = {"graph_id": "agent", "namespace": "model"}
ALWAYS = frozenset({"input", "interrupt_before", "namespace", "namespace_prefix", "prefix"})
"""Runs stop at once, since what matters is whether they may begin; and the store is asked by namespace."""

READ_TOO = {"checkpoint": "checkpoint_id"}
"""What the platform also reads where it declares the first."""

UNDECLARED_BODIES: dict[str, Schema] = {
    "/assistants/{assistant_id}/versions": {"properties": {"metadata": {}, "limit": {"type": "integer"}}},
    "/assistants/{assistant_id}/latest": {
        "properties": {"version": {"type": "integer"}},
        "required": ["version"],
    },
}
"""What the platform reads and does not declare."""
