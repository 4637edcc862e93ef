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
    "seccomp",
    "processes",
    "supervisors",
    "commands",
    "contents",
    "patterns",
    "search",
    "files",
    "deletion",
    "unlinked",
    "operations",
    "workers",
    "connections",
    "listener",
    "main",
)
"""Each imports only those before it, and the standard library."""

_WAY_OUT = "proxy"
"""Goes before the last, for a sandbox that has one. Without, it takes none of that sandbox's memory."""

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
sys.modules["sandbox.toolbox.main"].main({way_out})
"""


@lru_cache
def toolbox_program(*, egress: bool = False) -> str:
    """Return the program, to be given to `python3 -c`. Reads the toolbox's files once.

    Args:
        egress: With the proxy.

    Linux takes 128 KiB in one argument, and Python keeps several copies of it, so it is made as short as can
    be: without comments, docstrings and annotations, and compressed.
    """
    names = (*_MODULES[:-1], _WAY_OUT, _MODULES[-1]) if egress else _MODULES
    sources = [("sandbox", ""), (_PACKAGE, "")]
    sources += [(f"{_PACKAGE}.{name}", _short((_DIRECTORY / f"{name}.py").read_text())) for name in names]
    packed = binascii.b2a_base64(zlib.compress(repr(sources).encode(), 9), newline=False)
    way_out = f'sys.modules["{_PACKAGE}.{_WAY_OUT}"].Proxy' if egress else ""
    return _LOADER.format(packed=packed.decode(), way_out=way_out)


def _short(source: str) -> str:
    return ast.unparse(ast.fix_missing_locations(_Shortener().visit(ast.parse(source))))


class _Shortener(ast.NodeTransformer):
    """Drops what only readers and type checkers want, and what would take memory in every sandbox."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        # A text that stands by itself is a docstring, or says what the name above it is for.
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return ast.Assign([node.target], node.value) if node.value else None

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._with_a_body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._with_a_body(node)

    def _with_a_body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node
