"""What a ``pytest`` command asks for beyond the files and node ids that it names."""

from __future__ import annotations

from dataclasses import dataclass

from apr_falsify.contracts.shell import Command

_VALUED = frozenset(
    """
    -m -k -n -p -c -o -W -r --tb --maxfail --durations --rootdir --confcutdir --deselect --ignore
    --ignore-glob --basetemp --junitxml --junit-xml --log-level --log-cli-level --timeout --cov-report
    --import-mode --capture --color --numprocesses --dist --override-ini --durations-min --log-file --lfnf
    """.split()  # noqa: SIM905 - a table of words reads best as words
)
_PYTHONS = ("python", "python3", "py")


@dataclass(frozen=True, slots=True, kw_only=True)
class PytestRun:
    """One ``pytest``.

    Attributes:
        arguments: files, folders and node ids.
        keyword: of ``-k``, empty where there is none.
        marker: of ``-m``; ``None`` where there is none, so that the settings' own holds.
        ignored: files, folders and node ids that are left out.
        ignored_globs: patterns of files that are left out.
        folder: where it runs, as far as the command says.

    """

    arguments: tuple[str, ...] = ()
    keyword: str = ""
    marker: str | None = None
    ignored: tuple[str, ...] = ()
    ignored_globs: tuple[str, ...] = ()
    folder: str = ""


def read_pytest(command: Command) -> PytestRun | None:
    """Read a command; ``None`` where it does not run pytest."""
    words = _after_pytest(command)
    if words is None:
        return None
    arguments: list[str] = []
    ignored: list[str] = []
    globs: list[str] = []
    keyword, marker = "", None
    pending = iter(words)
    for word in pending:
        if not word.startswith("-"):
            arguments.append(word)
            continue
        option, equals, value = word.partition("=")
        if not equals and option[:2] in ("-k", "-m", "-n", "-p") and len(option) > 2 and option[1] != "-":
            option, value = option[:2], option[2:]
        elif not equals and option in _VALUED:
            value = next(pending, "")
        if option == "-k":
            keyword = value
        elif option == "-m":
            marker = value
        elif option in ("--deselect", "--ignore"):
            ignored.append(value)
        elif option == "--ignore-glob":
            globs.append(value)
    return PytestRun(
        arguments=tuple(arguments),
        keyword=keyword,
        marker=marker,
        ignored=tuple(ignored),
        ignored_globs=tuple(globs),
        folder=command.within,
    )


def _after_pytest(command: Command) -> list[str] | None:
    words = list(command.words)
    if command.tool in ("pytest", "py.test"):
        return words[1:]
    if command.tool.startswith(_PYTHONS) and "pytest" in words:
        at = words.index("pytest")
        return words[at + 1 :] if words[at - 1] == "-m" else None
    return None
