"""The program that is given to a container: one short text, for any Python from 3.8 on."""

import ast
import binascii
import re
import sys
import zlib
from pathlib import Path

from sandbox import toolbox
from sandbox.program import toolbox_program


def modules(*, egress: bool = True) -> list[tuple[str, str]]:
    [packed] = re.findall(r'a2b_base64\("(.*?)"\)', toolbox_program(egress=egress))
    sources: list[tuple[str, str]] = ast.literal_eval(zlib.decompress(binascii.a2b_base64(packed)).decode())
    return sources


def test_it_fits_into_one_argument_of_a_program() -> None:
    assert len(toolbox_program(egress=True).encode()) < 64 << 10  # Linux takes twice as much


def test_every_file_of_the_toolbox_is_in_it() -> None:
    files = {path.stem for path in Path(toolbox.__path__[0]).glob("*.py")} - {"__init__"}
    assert {name.rpartition(".")[2] for name, _ in modules()} == files | {"sandbox", "toolbox"}


def test_the_proxy_takes_no_memory_of_a_sandbox_without_egress() -> None:
    assert dict(modules()).keys() - dict(modules(egress=False)).keys() == {"sandbox.toolbox.proxy"}


def test_its_syntax_is_that_of_python_3_8() -> None:
    for _, source in modules():
        ast.parse(source, feature_version=(3, 8))


def test_it_imports_the_standard_library_and_what_comes_before_it() -> None:
    known = set(sys.stdlib_module_names)
    for name, source in modules():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= known, name
            elif isinstance(node, ast.ImportFrom):
                origin = str(node.module)
                full = {f"{origin}.{alias.name}" for alias in node.names}
                assert origin.partition(".")[0] in known | {"sandbox"}, name
                assert "sandbox" not in origin or origin in known or full <= known, (name, full)
        known.add(name)


def test_it_has_neither_comments_nor_docstrings_nor_annotations() -> None:
    for _, source in modules():
        assert "#" not in source.replace("'#'", "")
        assert ast.get_docstring(ast.parse(source)) is None
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.AnnAssign)
            assert getattr(node, "annotation", None) is None
            assert getattr(node, "returns", None) is None
