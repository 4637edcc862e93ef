"""The graph that langgraph.json names, compiled once when the platform imports this file."""

from agent.build import build_graph
from agent.model import build_model
from sandbox.backend import get_backend

graph = build_graph(build_model(), get_backend(), prepare=get_backend().prepare)
