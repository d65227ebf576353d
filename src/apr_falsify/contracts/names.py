"""Names as people write them in contracts: paths with remarks, qualified symbols, test commands.

Everything here is text work on one value. A value that is prose and no name yields nothing: what is not
certainly a name is never held against the contract.
"""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass, replace

_PATH = re.compile(
    r"^[`'\"]?(?:(?P<source>[A-Za-z][\w-]*):(?![:/\d\s]))?"
    r"(?P<path>[\w.@+~*$<>{}\[\]-]*(?:/[\w.@+~*$<>{}\[\],=-]*)*)"
    r"(?P<symbol>(?:::[A-Za-z_*][\w*.]*(?:\[[^\]]*\])?)+)?(?:\(\)|!)?"
    r"(?P<line>:\d+(?:[-:]\d+)*|#L?\d+(?:-L?\d+)?)?[`'\"]?(?P<rest>[\s,;(].*)?$",
    re.DOTALL,
)
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")
_PLACEHOLDER = re.compile(r"[<>$]|\{[^},]*\}")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_KEYWORDS = re.compile(
    r"^(?:(?:pub(?:\([^)]*\))?|async|unsafe|const|static|fn|def|class|struct|enum|trait|type|mod|macro|method|"
    r"function|func|variant|test|module|impl)\s+)+(?=[A-Za-z_])"
)
_IDENTIFIER = re.compile(r"^(?:\.)?[A-Za-z_][\w*]*(?:(?:::|\.)[A-Za-z_*][\w*]*)*!?$")
_REMARK = re.compile(
    r"\s+(?:\u2014|\u2013|-{1,2}|#|//|\[|->|→|=>?)(?:\s|$).*|[:;]\s.*|[:;,.]$|\s*->.*", re.DOTALL
)
_SPLIT = re.compile(r"\s*(?:,|\s/\s|\s\+\s|&|;|\band\b|\n)\s*|(?<=\w)/(?=\w)")
# words of ordinary prose never have these marks of an identifier
_IDENTIFIER_MARK = re.compile(r"_|::|\w\.\w|[a-z0-9][A-Z]|[A-Z]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathName:
    """A path as cited: ``source:path::symbol``; ``source`` is empty for a file of the contract's own tree."""

    path: str
    source: str = ""
    symbol: str = ""
    within: str = ""  # where a command changed to before: the path may be meant from there

    @property
    def is_placeholder(self) -> bool:
        """``<model>.apr`` or ``$DIR/x``: stands for many paths, so none can be checked."""
        return bool(_PLACEHOLDER.search(_BRACES.sub("", self.path)))

    @property
    def escapes(self) -> bool:
        """An absolute path, or one with ``..``: never looked at."""
        parts = self.path.split("/")
        return self.path.startswith(("/", "~")) or ".." in parts

    def alternatives(self) -> list[str]:
        """``a/{b,c}.rs`` is two paths."""
        return expand_braces(self.path)


def expand_braces(text: str) -> list[str]:
    """``a{b,c}d`` -> ``[abd, acd]``."""
    match = _BRACES.search(text)
    if not match:
        return [text]
    head, tail = text[: match.start()], text[match.end() :]
    return [one for part in match[1].split(",") for one in expand_braces(head + part.strip() + tail)]


@functools.lru_cache(4096)
def parse_path(text: str, *, surely: bool = False) -> PathName | None:
    """Read a cited path, remarks and line numbers dropped; None where the text is no path.

    ``surely`` says that the place where it stands only ever holds paths, so ``Makefile`` is one.
    """
    text = text.strip()
    if "://" in text:
        return None
    match = _PATH.match(text)
    if not match or not match["path"]:
        return None
    path, symbol = match["path"].rstrip(",.") or ".", (match["symbol"] or "")[2:]
    looks = "/" in path.strip("/") or path.endswith("/") or bool(_EXTENSION.search(path))
    plain = not (match["rest"] or "").strip() or (match["rest"] or "").lstrip().startswith("(")
    if not looks and not (surely and plain):
        return None
    return PathName(
        path=path.removeprefix("./").rstrip("/") or ".", source=match["source"] or "", symbol=symbol
    )


@functools.lru_cache(4096)
def parse_symbols(text: str) -> tuple[str, ...]:
    """Read the names of functions, types or variants in one entry; empty where it is prose."""
    bare = _bare(text)
    pieces = [_KEYWORDS.sub("", piece.strip().strip("`'\"")) for piece in _SPLIT.split(bare)]
    pieces = [piece for piece in pieces if piece]
    if pieces and all(_IDENTIFIER.match(piece) for piece in pieces):
        return tuple(_tidy(piece) for piece in pieces)
    first = _KEYWORDS.sub("", bare).split()[:1]
    word = first[0].strip("`'\",") if first else ""
    if _IDENTIFIER.match(word) and _IDENTIFIER_MARK.search(word):
        return (_tidy(word),)
    return ()


_BRACED = re.compile(r"(?<![\w:.])([\w:.]+::)\{([^{}]*)\}")
"""``a::{b, c}``. Without the look behind, a long word without a brace is gone through from each letter."""


def _bare(text: str) -> str:
    """Without back-ticks around it, generics, parentheses and what a dash or colon introduces."""
    text = text.strip()
    for match in _BRACED.finditer(text):
        expanded = ", ".join(match[1] + part.strip() for part in match[2].split(","))
        text = text.replace(match.group(), expanded)
    for pattern in (r"(?:::)?<[^<>]*>", r"\([^()]*\)"):
        previous = None
        while previous != text:
            previous, text = text, re.sub(pattern, "", text)
    if text.startswith("`") and "`" in text[1:]:
        text = text[1 : text.index("`", 1)]
    return _REMARK.sub("", text).strip()


def _tidy(name: str) -> str:
    parts = name.strip("!.").replace(".", "::").split("::")
    while len(parts) > 1 and parts[0] in ("crate", "self", "super", "Self", "cls"):
        parts.pop(0)
    return "::".join(parts)


_PYTEST_NODE = re.compile(
    r"(?<![\w/.:-])(?P<path>(?:[A-Za-z][\w-]*:)?[\w.@+/-]+\.py)(?P<parts>(?:::\w+(?:\[[^\]]*\])?)+)"
)
_RUNNER = re.compile(
    r"^(?:\$\s+)?(?:\w+=\S+\s+)*(?:(?:uv|poetry|hatch|pdm|rye)\s+run\s+)?"
    r"(?P<tool>(?:python3?\s+-m\s+)?pytest|python3?\s+-m\s+unittest|python3?|bash|sh|cargo)\b(?P<rest>.*)$"
)
_CHANGE = re.compile(r"(?:^|\s|\()cd\s+(\S+)\s*(?:&&|;)\s*")
_SHELL_END = re.compile(r"\s(?:&&|\|\|?|;|2?>&?1?|>)(?:\s|$).*")
_CARGO_VALUES = frozenset(
    """
    -p --package --test --bench --example --bin --features -F --target --manifest-path --profile -j
    --jobs --color --target-dir --exclude --message-format -Z --config
    """.split()  # noqa: SIM905 - words read best as words
)
_LIBTEST_VALUES = frozenset(["--skip", "--test-threads", "--format", "--color", "--report-time"])
_PYTEST_VALUES = frozenset(
    """
    -m -k -n -p -c -o -W --tb --maxfail --durations --rootdir --confcutdir
    """.split()  # noqa: SIM905 - a table of words reads best as words
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PytestNode:
    """One pytest node id: a file and the classes and function below it, parameters dropped."""

    path: PathName
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoTest:
    """One ``cargo test``: the crate, the test binaries it names, and the name filters."""

    package: str = ""
    targets: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    runs_ignored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TestNames:
    """What the text of a ``test:`` names."""

    nodes: tuple[PytestNode, ...] = ()
    cargo: tuple[CargoTest, ...] = ()
    files: tuple[PathName, ...] = ()
    bare: tuple[str, ...] = ()


@functools.lru_cache(4096)
def parse_test(text: str) -> TestNames:
    """Read the tests a text names: node ids anywhere, commands at the start of a line, one bare name."""
    nodes: list[PytestNode] = []
    cargo: list[CargoTest] = []
    files: list[PathName] = []
    change = _CHANGE.search(text)
    within = change[1].strip("'\"").rstrip("/") if change else ""
    for match in _PYTEST_NODE.finditer(text):
        path = parse_path(match["path"])
        if path:
            parts = re.sub(r"\[[^\]]*\]", "", match["parts"]).split("::")[1:]
            nodes.append(PytestNode(path=replace(path, within=within), parts=tuple(parts)))
    for line in text.replace("\\\n", " ").splitlines():
        command = _RUNNER.match(_CHANGE.sub("", line).strip().strip("`"))
        if command and command["tool"] == "cargo":
            cargo.extend(_cargo(command["rest"]))
        elif command:
            run = _script_files(command["tool"], command["rest"])
            files.extend(replace(one, within=within) for one in run)
    whole = parse_path(text) if "\n" not in text.strip() else None
    if whole and not whole.symbol and not nodes and whole.path.endswith((".py", ".rs", ".sh")):
        files.append(whole)
    bare = () if nodes or cargo or files else _bare_test(text)
    return TestNames(nodes=tuple(nodes), cargo=tuple(cargo), files=tuple(files), bare=bare)


def _bare_test(text: str) -> tuple[str, ...]:
    """``module::tests::name`` or ``test_name`` alone, possibly several joined by ``+``."""
    pieces = [piece.strip().strip("`") for piece in re.split(r"\s\+\s|,\s|\n", _bare(text)) if piece.strip()]
    named = all(re.match(r"^(?:\w+::)+\w+$|^(?:test|falsify)_\w+$|^\w+_\w+_\w+$", one) for one in pieces)
    return tuple(pieces) if pieces and named else ()


def _words(text: str) -> list[str]:
    text = _SHELL_END.sub("", re.sub(r"\s\((?:[^()]|\([^()]*\))*\)\s*$", "", text))
    try:
        return shlex.split(text.strip().rstrip("`"))
    except ValueError:
        return text.split()


def _script_files(tool: str, rest: str) -> list[PathName]:
    """Return the files that a command of pytest, unittest, Python or a shell runs."""
    words = _words(rest)
    files: list[PathName] = []
    if tool.endswith("unittest"):
        dotted = [word for word in words if re.match(r"^\w+(\.\w+)+$", word)]
        return [PathName(path=word, symbol="unittest") for word in dotted]
    takes_value = False
    for word in words:
        if not takes_value and not word.startswith("-") and "::" not in word:
            path = parse_path(word)
            if path and "/" in path.path and not path.escapes:
                files.append(path)
            if not tool.endswith("pytest"):
                break  # the rest are the script's own arguments
        elif tool in ("python", "python3", "bash", "sh") and word in ("-c", "-m"):
            break
        takes_value = word in _PYTEST_VALUES
    return files


def _after_test(words: list[str]) -> list[str] | None:
    """Return what follows ``test``, ``t`` or ``nextest run``; ``None`` where cargo does something else."""
    if words and words[0].startswith("+"):  # a toolchain
        words = words[1:]
    if words[:2] == ["nextest", "run"]:
        return words[2:]
    return words[1:] if words[:1] in (["test"], ["t"]) else None


def _cargo(rest: str) -> list[CargoTest]:
    words = _after_test(_words(rest))
    if words is None:
        return []
    package, targets, filters, ignored = "", [], [], False
    after = False
    pending = iter(words)
    for word in pending:
        if word == "--":
            after = True
        elif word.startswith("-"):
            ignored |= word in ("--ignored", "--include-ignored")
            option, equals, value = word.partition("=")
            if not equals and option in (_LIBTEST_VALUES if after else _CARGO_VALUES):
                value = next(pending, "")
            if option in ("-p", "--package"):
                package = value
            elif option == "--test" and not after:
                targets.append(value)
            elif option == "-E" or option in ("--doc", "--examples", "--manifest-path"):
                return []  # another language, or another tree: not ours to judge
        elif re.match(r"^[\w:]+$", word):
            filters.append(word)
    return [CargoTest(package=package, targets=tuple(targets), filters=tuple(filters), runs_ignored=ignored)]
