"""Which of the platform's runtimes this is."""

import os


def is_in_memory() -> bool:
    """Tell whether thread rows, runs and assistants live in this process only, as under `langgraph dev`."""
    return os.environ.get("LANGGRAPH_RUNTIME_EDITION", "inmem") == "inmem"
