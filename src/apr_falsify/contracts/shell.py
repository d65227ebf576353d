"""The commands of a text, as a shell would part them: every one of a line, of a script, of ``sh -c``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_SIGNS = frozenset("();<>|&")
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*\+?=")
# words before a command that run it, with those of their options that take a value
_RUNNERS: dict[str, tuple[str, ...]] = {
    "sudo": ("-u",), "env": ("-u",), "time": ("-f", "-o"), "nice": ("-n",), "command": (), "exec": (),
    "nohup": (), "xvfb-run": (), "if": (), "then": (), "else": (), "elif": (), "while": (), "until": (),
    "do": (), "!": (), "{": (), "$": (), "eval": (), "stdbuf": ("-i", "-o"), "faketime": (), "caffeinate": (),
    "uvx": ("--with", "--from", "-p", "--python"), "strace": ("-e", "-o"), "setarch": (), "catchsegv": (),
    "xargs": ("-n", "-P", "-I", "-L", "-d", "-a", "-s", "-E"), "ionice": ("-c", "-n"), "taskset": ("-c",),
}  # fmt: skip
_RUN_WITH = re.compile(
    r"^(?:uv|pipx|poetry|hatch|pdm|rye|pipenv|pixi|conda|mamba|micromamba|cross-env|dotenv)$"
)
_TIMEOUT = re.compile(r"^\d+(?:\.\d+)?[smhd]?$")
_QUOTED = re.compile(r"^[\s>*-]*`([^`]+)`")
_SHELLS = ("sh", "bash", "zsh", "dash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: its words, the settings before it, and the folder that a ``cd`` before it went to."""

    words: tuple[str, ...]
    settings: tuple[str, ...] = ()
    within: str = ""

    @property
    def tool(self) -> str:
        """The program, without its folder."""
        return self.words[0].rpartition("/")[2] if self.words else ""


def commands(text: str) -> Iterator[Command]:
    """Yield every command of a text, line by line; words of prose are commands of no known tool."""
    within = ""
    for line in text.replace("\\\n", " ").splitlines():
        quoted, before, others = _QUOTED.match(line), within, False
        for words in _parted(quoted[1] if quoted else line.strip().strip("`")):
            settings, rest = _bare(words)
            if rest[:1] == ["cd"] or rest[:1] == ["pushd"]:
                within = _joined(within, rest[1]) if len(rest) > 1 else ""
                continue
            others |= bool(rest)
            inline = _inline_of(rest)
            if inline:
                inner = rest[inline]
                yield from (_within(one, within, settings) for one in commands(inner))
            elif rest:
                yield Command(words=tuple(rest), settings=tuple(settings), within=within)
        within = before if others else within  # lines with a `cd` of their own are listed, not one script


def _inline_of(words: list[str]) -> int:
    """Where the script of ``sh -c``, ``bash -lc`` stands; 0 where there is none."""
    if not words or words[0].rpartition("/")[2] not in _SHELLS:
        return 0
    given = (at for at, word in enumerate(words[1:-1], 1) if re.match(r"^-[a-z]*c$", word))
    return next(given, -1) + 1


def _joined(within: str, folder: str) -> str:
    folder = folder.rstrip("/")
    return folder if folder.startswith(("/", "$", "~")) or not within else f"{within}/{folder}"


def _within(one: Command, within: str, settings: list[str]) -> Command:
    whole = _joined(within, one.within) if one.within else within
    return Command(words=one.words, settings=(*settings, *one.settings), within=whole)


def _parted(line: str) -> Iterator[list[str]]:
    """Split a line into commands at the signs of a shell, redirections and comments left out."""
    words: list[str] = []
    skip = False
    for word in _tokens(line):
        if word.startswith("#"):
            break
        if word and set(word) <= _SIGNS:
            skip = "<" in word or ">" in word
            if skip and words and words[-1].isdigit():
                words.pop()  # `2>`
            elif not skip:
                yield words
                words = []
        elif skip:
            skip = False
        else:
            words.append(word)
    yield words


_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<sign>[();<>|&]+)|'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)\"|\\(?P<escaped>.)"""
    r"""|(?P<plain>[^\s();<>|&'"\\]+|['"\\])""",
    re.DOTALL,
)


def _tokens(line: str) -> Iterator[str]:
    """The words and signs of a line; a quote that is not closed, as in prose, is a letter."""
    word: str | None = None
    for match in _TOKEN.finditer(line):
        kind, text = match.lastgroup, match[match.lastgroup or 0]
        if kind in ("space", "sign"):
            if word is not None:
                yield word
            word = None
            if kind == "sign":
                yield text
        else:
            word = (word or "") + (re.sub(r"\\(.)", r"\1", text) if kind == "double" else text)
    if word is not None:
        yield word


def _bare(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the settings before a command, and the command without what only runs it."""
    settings: list[str] = []
    rest = list(words)
    while rest:
        if _ASSIGNMENT.match(rest[0]):
            settings.append(rest.pop(0))
        elif rest[0].rpartition("/")[2] in _RUNNERS:
            valued = _RUNNERS[rest.pop(0).rpartition("/")[2]]
            while rest and rest[0].startswith("-"):
                rest = rest[2 if rest[0] in valued else 1 :]
        elif rest[0] == "timeout":
            rest = rest[1:]
            while rest and (rest[0].startswith("-") or _TIMEOUT.match(rest[0])):
                rest = rest[1:]
        elif _RUN_WITH.match(rest[0]) and "run" in rest[1:4]:
            is_hatch = rest[0] == "hatch"
            rest = _without_options(rest[rest.index("run") + 1 :])
            if is_hatch and rest and ":" in rest[0].strip(":"):  # `test:pytest`: in an environment
                rest[0] = rest[0].partition(":")[2]
        elif rest[:2] == ["hatch", "test"]:
            rest = ["pytest", *rest[2:]]
        elif rest[:2] == ["coverage", "run"] and "-m" in rest:
            rest = ["python", *rest[rest.index("-m") :]]
        else:
            break
    return settings, rest


_VALUED = (
    "--with",
    "--extra",
    "--group",
    "--python",
    "-p",
    "--package",
    "--env-file",
    "-n",
    "--name",
    "-e",
    "--with-requirements",
)


def _without_options(rest: list[str]) -> list[str]:
    while rest and rest[0].startswith("-"):
        rest = rest[2 if rest[0] in _VALUED else 1 :]
    return rest
