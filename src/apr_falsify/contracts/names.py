"""Names as people write them in contracts: paths with remarks, qualified symbols, test commands.

Everything here is text work on one value. A value that is prose and no name yields nothing: what is not
certainly a name is never held against the contract.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from apr_falsify.contracts.cargo_command import CargoTest, is_placeholder, read_cargo
from apr_falsify.contracts.pytest_command import PytestRun, read_pytest
from apr_falsify.contracts.shell import Command, commands

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
_RAW = re.compile(r"(?<![\w./~@+-])r#(?=[A-Za-z_])")
"""Rust's way to use a keyword as a name: ``r#type`` is called ``type``. In ``plot.r#fit`` it is none."""
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
    text = _RAW.sub("", text.strip())
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
    text = _RAW.sub("", text.strip())
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PytestNode:
    """One pytest node id: a file, the classes and function below it, and the id of the parameters."""

    path: PathName
    parts: tuple[str, ...]
    case: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTarget:
    """What a build tool is asked to run: ``make falsify``, ``just check``, ``nox -s tests``, ``tox -e lint``.

    ``arguments`` are those behind ``--``, which tox hands on. ``is_sure`` is false of a word that may be one
    of a sentence: it counts where the tool's file has such a target.
    """

    tool: str
    name: str
    within: str = ""
    arguments: tuple[str, ...] = ()
    is_sure: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TestNames:
    """What the text of a ``test:`` names; true where it surely names anything."""

    nodes: tuple[PytestNode, ...] = ()
    cargo: tuple[CargoTest, ...] = ()
    runs: tuple[PytestRun, ...] = ()
    targets: tuple[BuildTarget, ...] = ()
    harnesses: tuple[str, ...] = ()
    files: tuple[PathName, ...] = ()
    bare: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        sure = any(one.is_sure for one in self.targets)
        return sure or bool(
            self.nodes or self.cargo or self.runs or self.harnesses or self.files or self.bare
        )


@functools.lru_cache(4096)
def parse_test(text: str) -> TestNames:
    """Read the tests a text names: node ids anywhere, every command of every line, one bare name."""
    nodes: list[PytestNode] = []
    cargo: list[CargoTest] = []
    runs: list[PytestRun] = []
    targets: list[BuildTarget] = []
    harnesses: list[str] = []
    files: list[PathName] = []
    for command in commands(text):
        one = read_cargo(command) if command.tool in ("cargo", "cross") else None
        run = read_pytest(command)
        nodes.extend(node for word in (run.arguments if run else ()) for node in _nodes(word, command.within))
        cargo.extend([one] if one else ())
        runs.extend([run] if run else ())
        targets.extend(_build_targets(command))
        harnesses.extend(_harnesses(command))
        files.extend(replace(path, within=command.within) for path in _files_run(command, run))
    known = {(node.path.path, node.parts) for node in nodes}
    others = _nodes(text, _folder_of(text))  # in prose, or behind a tool that is not known
    nodes.extend(node for node in others if (node.path.path, node.parts) not in known)
    whole = parse_path(text) if "\n" not in text.strip() else None
    if whole and not nodes and whole.path.endswith((".rs",) if whole.symbol else (".py", ".rs", ".sh")):
        files.append(whole)
    sure = any(one.is_sure for one in targets)
    bare = () if nodes or cargo or files or runs or sure or harnesses else _bare_test(text)
    return TestNames(
        nodes=tuple(nodes),
        cargo=tuple(cargo),
        runs=tuple(run for run in runs if run.keyword or _chooses_by_mark(run)),
        targets=tuple(targets),
        harnesses=tuple(harnesses),
        files=tuple(dict.fromkeys(files)),
        bare=bare,
    )


def _harnesses(command: Command) -> Iterator[str]:
    """What ``cargo kani --harness NAME`` asks for."""
    words = command.words
    for at, word in enumerate(words) if words[1:2] == ("kani",) or command.tool == "kani" else ():
        option, equals, value = word.partition("=")
        name = value if equals else words[at + 1] if at + 1 < len(words) else ""
        if option == "--harness" and re.fullmatch(r"(?:\w+::)*\w+", name) and not is_placeholder(name):
            yield name


def _chooses_by_mark(run: PytestRun) -> bool:
    """Whether ``-m`` asks for more than the one mark, which is looked for by itself."""
    return bool(run.marker) and (bool(run.arguments) or " " in (run.marker or "").strip())


def _nodes(text: str, within: str) -> Iterator[PytestNode]:
    for match in _PYTEST_NODE.finditer(text):
        path = parse_path(match["path"])
        if path:
            parts = re.sub(r"\[[^\]]*\]", "", match["parts"]).split("::")[1:]
            case = re.search(r"\[([^\[\]]+)\]$", match["parts"])
            known = case[1] if case and text[match.end() : match.end() + 1] not in ("[", "]") else ""
            yield PytestNode(path=replace(path, within=within), parts=tuple(parts), case=known)


_CHANGE = re.compile(r"(?:^|\s|\()cd\s+(\S+)\s*(?:&&|;)\s*")


def _folder_of(text: str) -> str:
    change = _CHANGE.search(text)
    return change[1].strip("'\"").rstrip("/") if change else ""


def _bare_test(text: str) -> tuple[str, ...]:
    """``module::tests::name`` or ``test_name`` alone, possibly several joined by ``+``."""
    pieces = [piece.strip().strip("`") for piece in re.split(r"\s\+\s|,\s|\n", _bare(text)) if piece.strip()]
    named = all(re.match(r"^(?:\w+::)+\w+$|^(?:test|falsify)_\w+$|^\w+_\w+_\w+$", one) for one in pieces)
    return tuple(pieces) if pieces and named else ()


def _files_run(command: Command, run: PytestRun | None) -> list[PathName]:
    """Return the files that a command of pytest, unittest, Python, a shell or a build tool runs."""
    if run is not None:
        return _paths(run.arguments)
    words = list(command.words[1:])
    if command.tool in _SCRIPT_TOOLS:
        if "unittest" in words[:2]:
            dotted = [word for word in words if re.match(r"^\w+(\.\w+)+$", word)]
            return [PathName(path=word, symbol="unittest") for word in dotted]
        first = next((word for word in words if not word.startswith("-")), "")
        inline = any(word in ("-c", "-m") for word in words[: words.index(first) if first else None])
        return [] if inline else _paths((first,))
    if command.tool in _BUILD_TOOLS:
        given = [word.partition("=")[2] or word for word in words]
        return [path for path in _paths(tuple(given)) if path.path.endswith((".py", ".rs", ".sh"))]
    return []


_SCRIPT_TOOLS = ("python", "python3", "bash", "sh")
_BUILD_TOOLS = ("make", "gmake", "just", "tox", "nox", "hatch", "task", "invoke", "inv")


def _paths(words: tuple[str, ...]) -> list[PathName]:
    found = [parse_path(word) for word in words if "::" not in word and not word.startswith("-")]
    return [path for path in found if path and "/" in path.path and not path.escapes]


_BUILD_VALUED = frozenset(
    ("-f", "-j", "-C", "-I", "-o", "-W", "--justfile", "-d", "--working-directory", "-l", "--set")
)


def _build_targets(command: Command) -> list[BuildTarget]:
    """What make, just, ``nox -s`` and ``tox -e`` are asked to run, where they read their own file."""
    tool = "make" if command.tool == "gmake" else command.tool
    words = list(command.words[1:])
    if tool not in ("make", "just", "nox", "tox") or set(words) & _OTHER_FILES:
        return []
    behind = tuple(words[words.index("--") + 1 :]) if "--" in words else ()
    words = words[: words.index("--")] if "--" in words else words
    if tool in ("nox", "tox"):
        named = (
            _sessions(words)
            if tool == "nox"
            else [one for word in _sessions(words) for one in word.split(",")]
        )
        given = behind if tool == "tox" else ()
        sure = [one for one in named if re.match(r"^[A-Za-z][\w.-]*$", one)]
        return [BuildTarget(tool=tool, name=one, within=command.within, arguments=given) for one in sure]
    within, names = _recipes_asked_for(tool, words, command.within)
    alone = len(command.words) == 2 and names[:1] and names[0] in _USUAL_TARGETS
    return [
        BuildTarget(tool=tool, name=one, within=within, is_sure=bool(alone or re.search(r"\w[-_]", one)))
        for one in names
        if re.match(r"^[A-Za-z][\w-]*$", one)
    ]  # `make sure that` is prose


def _recipes_asked_for(tool: str, words: list[str], within: str) -> tuple[str, list[str]]:
    names: list[str] = []
    pending = iter(words)
    for word in pending:
        if word in ("-C", "--directory"):
            within = next(pending, "").removeprefix("./").rstrip("/").strip(".")
        elif word in _BUILD_VALUED:
            next(pending, "")
        elif not word.startswith("-") and "=" not in word:
            names.append(word)
            if tool == "just":
                break  # the rest are the recipe's own arguments
    return within, names


def _sessions(words: list[str]) -> list[str]:
    """What stands behind ``-s`` or ``-e``, up to the next option."""
    found: list[str] = []
    taking = False
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("-"):
            taking = option in ("-s", "--session", "--sessions", "-e", "--env")
            found += [value] if taking and equals else []
        elif taking:
            found.append(word)
    return found


_OTHER_FILES = frozenset(("-f", "--file", "--makefile", "--justfile", "--noxfile", "-c", "--conf"))
_USUAL_TARGETS = ("test", "tests", "check", "lint", "ci", "verify", "bench", "falsify", "contracts", "all")
