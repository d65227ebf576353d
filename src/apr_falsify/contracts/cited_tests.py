"""Citations of the tests that a text names, as :func:`apr_falsify.contracts.names.parse_test` read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from apr_falsify.contracts.model import Citation
from apr_falsify.contracts.names import PathName, TestNames
from apr_falsify.contracts.problem import Place


def shown_path(path: PathName) -> str:
    """A path as a contract writes it: ``source:file::symbol``."""
    source = f"{path.source}:" if path.source else ""
    return f"{source}{path.path}" + (f"::{path.symbol}" if path.symbol else "")


def cited_tests(
    names: TestNames, text: str, place: Callable[[str], Place], absent: bool
) -> Iterator[Citation]:
    """Yield what commands and node ids of a text cite; names that stand bare are not among it.

    Args:
        names: what was read of the text.
        text: itself.
        place: where a part of the text stands.
        absent: whether the text says that it is missing.

    """

    def cite(kind: str, shown: str, **more: object) -> Citation:
        return Citation(
            kind=kind,
            text=shown,
            place=place(shown),
            expected_absent=absent,
            role="test",
            **more,  # type: ignore[arg-type]  # the fields that one kind of citation has
        )

    for node in names.nodes:
        case = f"[{node.case}]" if node.case else ""
        shown = "::".join((shown_path(node.path), *node.parts))
        yield cite("pytest", shown, name="::".join(node.parts) + case, paths=(node.path,))
    for command in names.cargo:
        yield cite("cargo", text.strip().splitlines()[0], name=" ".join(command.filters), cargo=command)
    for run in names.runs:
        chosen = f"-k {run.keyword}" if run.keyword else f"-m {run.marker}"
        yield cite("run", f"pytest {chosen}", name=run.keyword or run.marker, run=run)
    for target in names.targets:
        yield cite("target", f"{target.tool} {target.name}", name=target.name, target=target)
    for harness in names.harnesses:
        yield cite("harness", harness, name=harness)
    for file in names.files:
        if file.symbol == "unittest":
            yield cite("unittest", file.path, name=file.path)
        elif file.symbol:
            yield cite("symbol", shown_path(file), name=file.symbol, paths=(file,))
        else:
            yield cite("file", shown_path(file), paths=(file,))
