"""The program that is the first process of every sandbox, as one text of the files of `sandbox/toolbox/`."""

import ast
import binascii
import zlib
from functools import lru_cache
from pathlib import Path

_PACKAGE = "sandbox.toolbox"
_DIRECTORY = Path(__file__).parent / "toolbox"

_MODULES = (
    "frames",
    "reactor",
    "kernel",
    "processes",
    "supervisors",
    "commands",
    "contents",
    "patterns",
    "search",
    "files",
    "deletion",
    "operations",
    "workers",
    "connections",
    "main",
)
"""Each imports only those before it, and the standard library."""

# The modules are made by hand, so the files keep their names for each other and need not be on any disk. A
# child compiles them: what a compiler takes would stay with this process, and be a third of its memory.
_LOADER = """\
import binascii, marshal, os, sys, zlib
receiver, sender = os.pipe()
if not os.fork():
    sources = eval(zlib.decompress(binascii.a2b_base64("{packed}")))
    with open(sender, "wb") as pipe:
        marshal.dump([(name, compile(text, name, "exec", 0, True, 2)) for name, text in sources], pipe)
    os._exit(0)
os.close(sender)
with open(receiver, "rb") as pipe:
    codes = marshal.load(pipe)
os.wait()
for name, code in codes:
    module = sys.modules[name] = type(sys)(name)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    exec(code, module.__dict__)
del codes, code, module, sys.argv[:]
sys.modules["sandbox.toolbox.main"].main()
"""


@lru_cache
def toolbox_program() -> str:
    """Return the program, to be given to `python3 -c`. Reads the toolbox's files once.

    Linux takes 128 KiB in one argument, and Python keeps several copies of it, so it is made as short as can
    be: without comments and docstrings, and compressed.
    """
    sources = [("sandbox", ""), (_PACKAGE, "")]
    sources += [(f"{_PACKAGE}.{name}", _short((_DIRECTORY / f"{name}.py").read_text())) for name in _MODULES]
    packed = binascii.b2a_base64(zlib.compress(repr(sources).encode(), 9), newline=False)
    return _LOADER.format(packed=packed.decode())


def _short(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):
                # A text that stands by itself is a docstring, or says what the name above it is for.
                node.body = [it for it in value if not _is_text(it)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
