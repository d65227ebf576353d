"""What docstrings and comments name is there: a renaming that forgets its prose fails here."""

from __future__ import annotations

import builtins
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.unit.helpers import PACKAGE

FOREIGN = frozenset(
    {
        *("PyYAML", "OpenBLAS", "GitHub", "PyTorch", "TorchFunctionMode", "TensorProto"),
        *("ByteDance", "DeepSeek", "MiniMax", "SmolLM", "ChatGLM", "OpenAI"),  # models, and who made them
        *(
            "AutoAWQ",
            "AutoGPTQ",
            "FineGrainedFP8",
            "SmoothQuant",
            "TensorRT",
            "SwiGLU",
        ),  # ways to quantise, gate
        *("E2M1", "E8M0"),  # number formats
        *("AprV2DequantExt", "AprV2Metadata", "TensorDType"),  # of apr's sources
        *("ParseStageList", "TestX", "Foo"),  # examples
    }
)
"""Names in CamelCase that are no names of this package."""

CAMEL = re.compile(r"\b[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+\b")
ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`~?([\w.]+)`")
QUOTED_CLASS = re.compile(r"``([A-Z][a-z]+[A-Za-z]*)(?:\.\w+|\(\))?``")


def tokens_of(path: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)


def is_prose(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.COMMENT or token.string.startswith(('"""', 'r"""'))


def named_nowhere(files: Mapping[str, Path]) -> list[str]:
    """``file:line name`` for each name in the prose of ``files`` that their code does not have."""
    names, prose = {*dir(builtins), *FOREIGN}, []
    for where, path in files.items():
        names |= {path.stem, *Path(where).parts}
        for token in tokens_of(path):
            if token.type in (tokenize.COMMENT, tokenize.STRING) and is_prose(token):
                prose.append((where, token))
            elif token.type in (
                tokenize.NAME,
                tokenize.STRING,
            ):  # a name may stand in a string, as a key does
                names.update(re.findall(r"\w+", token.string))
    return [
        f"{where}:{token.start[0] + token.string[: found.start()].count(chr(10))} {found.group()}"
        for where, token in prose
        for pattern in (CAMEL, ROLE, QUOTED_CLASS)
        for found in pattern.finditer(token.string)
        for part in found.group(found.lastindex or 0).strip(".").split(".")
        if part not in names and part.removesuffix("s") not in names
    ]


def test_prose_names_what_is_there() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    assert named_nowhere(files) == []


def test_a_name_that_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        '"""One GoneClass; a :class:`Other`, a ``Third``, :func:`kept`, ``None`` and GitHub."""\n'
        "# and GoneToo here, beside HereClass\n"
        'class HereClass:\n    """Not :meth:`HereClass.gone`."""\n'
    )
    assert named_nowhere({"a.py": tmp_path / "a.py"}) == [
        "a.py:1 GoneClass",
        "a.py:1 :class:`Other`",
        "a.py:1 :func:`kept`",
        "a.py:1 ``Third``",
        "a.py:2 GoneToo",
        "a.py:4 :meth:`HereClass.gone`",
    ]
