"""Warren's agent without Warren around it: no sandbox, files in the thread's state."""

from deepagents.backends import StateBackend

from agent.build import build_graph
from agent.rehearsal import RehearsalModel

graph = build_graph(RehearsalModel(), StateBackend())
