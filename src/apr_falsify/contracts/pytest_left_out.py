"""What pytest is told to leave out: by options of the command, by ``collect_ignore`` of a ``conftest.py``.

Source: pytest's documentation, "Changing standard (Python) test discovery" and "Customizing test collection".
"""

from __future__ import annotations

import ast
import fnmatch
import functools
from collections.abc import Iterator

from apr_falsify.contracts.pytest_command import PytestRun
from apr_falsify.symbols.tree import SourceTree


def is_deselected(run: PytestRun, file: str, parts: tuple[str, ...]) -> bool:
    """Whether ``--ignore``, ``--ignore-glob`` or ``--deselect`` leaves a test out."""
    for one in run.ignored:
        path, _, rest = one.removeprefix("./").rstrip("/").partition("::")
        whole = f"{run.folder}/{path}" if run.folder else path
        wanted = tuple(rest.split("::")) if rest else ()
        if (file == whole or file.startswith(f"{whole}/")) and parts[: len(wanted)] == wanted:
            return True
    whole_globs = (f"{run.folder}/{one}" if run.folder else one for one in run.ignored_globs)
    return any(_fits(file, one.removeprefix("./")) for one in whole_globs)


def is_left_out_by_conftest(tree: SourceTree, file: str) -> bool:
    """Whether a ``conftest.py`` of a folder around a file leaves it out, where no command names it."""
    folder = file
    while folder:
        folder = folder.rpartition("/")[0]
        conftest = f"{folder}/conftest.py" if folder else "conftest.py"
        for is_glob, name in _ignored(tree.read_bytes(conftest)) if tree.has(conftest) else ():
            whole = f"{folder}/{name}" if folder else name
            if file == whole or file.startswith(f"{whole}/") or (is_glob and _fits(file, whole)):
                return True
    return False


def _fits(file: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(file, pattern) or fnmatch.fnmatchcase(file, f"{pattern}/*")


_LISTS = {"collect_ignore": False, "collect_ignore_glob": True}


@functools.lru_cache(256)
def _ignored(source: bytes | None) -> tuple[tuple[bool, str], ...]:
    return tuple(_texts_of_lists(source))


def _texts_of_lists(source: bytes | None) -> Iterator[tuple[bool, str]]:
    """The texts of the lists that stand at the level of the module, and whether they are patterns."""
    if source is None or b"collect_ignore" not in source:
        return
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in body:
        names = (
            [one.id for one in node.targets if isinstance(one, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
        for name in names:
            value = node.value if isinstance(node, ast.Assign) else None
            for one in value.elts if name in _LISTS and isinstance(value, ast.List | ast.Tuple) else ():
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield _LISTS[name], one.value.rstrip("/")
