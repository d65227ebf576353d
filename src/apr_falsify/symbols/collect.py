"""Whether pytest would collect a function, decided from the parsed file and pytest's own settings.

Rules: pytest's documentation, "Conventions for Python test discovery" and "Changing standard test discovery".
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.reading import read_toml, table
from apr_falsify.symbols.index import ClassShape, Definition, SymbolIndex

SETTINGS_FILES = ("pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
_TEST_CASES = ("TestCase", "IsolatedAsyncioTestCase")


@dataclass(frozen=True, slots=True, kw_only=True)
class PytestSettings:
    """What pytest collects, and where; pytest's own words where nothing is configured.

    ``paths`` are the directories it looks into when none is named, ``pythonpath`` those that it puts before
    others on ``sys.path``; both relative to the folder of the settings. ``fixtures`` are those that every
    test uses (``usefixtures``), ``options`` those that every command is given (``addopts``).
    """

    files: tuple[str, ...] = ("test_*.py", "*_test.py")
    classes: tuple[str, ...] = ("Test",)
    functions: tuple[str, ...] = ("test",)
    paths: tuple[str, ...] = ()
    pythonpath: tuple[str, ...] = ()
    fixtures: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def read_settings(root: Path) -> PytestSettings | None:
    """Read the first of pytest.ini, pyproject.toml, tox.ini, setup.cfg that configures pytest, if any."""
    for reader in (_from_pytest_ini, _from_pyproject, _from_tox, _from_setup):
        options = reader(root)
        if options is not None:
            default = PytestSettings()
            return PytestSettings(
                files=_words(options.get("python_files"), default.files),
                classes=_words(options.get("python_classes"), default.classes),
                functions=_words(options.get("python_functions"), default.functions),
                paths=_words(options.get("testpaths"), default.paths),
                pythonpath=_words(options.get("pythonpath"), default.pythonpath),
                fixtures=_words(options.get("usefixtures"), default.fixtures),
                options=_shell_words(options.get("addopts")),
            )
    return None


def _words(value: object, default: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split()) or default
    return tuple(str(item) for item in value) if isinstance(value, list) else default


def _shell_words(value: object) -> tuple[str, ...]:
    import shlex

    try:
        return tuple(shlex.split(value)) if isinstance(value, str) else _words(value, ())
    except ValueError:  # a quote that is not closed: pytest refuses it too
        return ()


def _from_pyproject(root: Path) -> dict[str, object] | None:
    try:
        tool = table(read_toml(root / "pyproject.toml"), "tool", "pytest")
    except (OSError, ValueError):
        return None
    options = tool.get("ini_options", tool or None)  # pytest 9 reads [tool.pytest] itself too
    return options if isinstance(options, dict) else None


def _ini(root: Path, name: str, section: str) -> dict[str, object] | None:
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(root / name, encoding="utf-8")
    except (OSError, configparser.Error, UnicodeDecodeError):
        return None
    return dict(parser[section]) if parser.has_section(section) else None


def _from_pytest_ini(root: Path) -> dict[str, object] | None:
    return _ini(root, "pytest.ini", "pytest") or _ini(root, ".pytest.ini", "pytest")


def _from_tox(root: Path) -> dict[str, object] | None:
    return _ini(root, "tox.ini", "pytest")


def _from_setup(root: Path) -> dict[str, object] | None:
    return _ini(root, "setup.cfg", "tool:pytest")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(name.startswith(pattern) or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def why_not_collected(one: Definition, index: SymbolIndex, settings: PytestSettings) -> str:
    """Why pytest would not collect a definition; empty where it would."""
    owners = one.parents if one.kind != "class" else (*one.parents, one.name)
    cases = [index.classes.get("::".join(owners[: count + 1])) for count in range(len(owners))]
    if any(shape is None for shape in cases):
        return "it is inside a function"
    is_case = any(_is_test_case(shape, index) for shape in cases if shape)
    for name, shape in zip(owners, cases, strict=True):
        reason = _class_reason(name, shape, settings, is_case)
        if reason:
            return reason
    if one.kind == "class":
        return ""
    if "fixture" in one.marks:
        return "it is a fixture"
    patterns = ("test",) if is_case else settings.functions
    return "" if _matches(one.name, patterns) else f"its name does not match {' '.join(patterns)!r}"


def _is_test_case(shape: ClassShape, index: SymbolIndex, depth: int = 0) -> bool:
    if depth > 10:
        return False
    last = [base.rpartition(".")[2] for base in shape.bases]
    return any(
        base in _TEST_CASES
        or base.endswith("TestCase")
        or (base in index.classes and _is_test_case(index.classes[base], index, depth + 1))
        for base in last
    )


def _class_reason(name: str, shape: ClassShape | None, settings: PytestSettings, is_case: bool) -> str:
    if shape is None or is_case:
        return ""
    if shape.is_test_off:
        return f"class {name} sets __test__ to false"
    if not _matches(name, settings.classes):
        return f"class {name} does not match {' '.join(settings.classes)!r}"
    return f"class {name} has a constructor" if shape.has_init else ""


def is_file_collected(relative: str, settings: PytestSettings) -> bool:
    """Whether plain ``pytest`` would look into the file at all."""
    name = relative.rpartition("/")[2]
    return any(
        fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(relative, pattern) for pattern in settings.files
    )


def test_names(index: SymbolIndex) -> list[str]:
    """Names that look like tests: what a misspelt one is matched against."""
    return [one.name for one in index.definitions if re.match(r"[Tt]est", one.name)]
