"""What can be asked for besides commands: a name, arguments and data in; a JSON object and data out."""

from __future__ import annotations

from sandbox.toolbox.deletion import delete_path
from sandbox.toolbox.files import download_files, edit_file, list_directory, read_file, upload_files
from sandbox.toolbox.search import find_files, search_files
from sandbox.toolbox.unlinked import measure_unlinked

TYPE_CHECKING = False  # importing `typing` would cost memory
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OPERATIONS: dict[str, Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]] = {
    "read": read_file,
    "upload": upload_files,
    "download": download_files,
    "edit": edit_file,
    "delete": delete_path,
    "ls": list_directory,
    "glob": find_files,
    "grep": search_files,
    "unlinked": measure_unlinked,
}
"""Each of them does what it can within some seconds: nothing can end it."""
