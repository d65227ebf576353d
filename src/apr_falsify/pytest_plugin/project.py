"""Which project asks for this plugin: the nearest one whose pyproject.toml has a table for it.

Every pytest run on the machine pays for this module, so it imports nothing that pytest has not imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

TABLE = "apr-falsify"
SESSION = "apr_falsify_session"
"""The name under which the part that works is registered."""

OPTIONS = ("--gpu", "--lane", "--oracle-model", "--subject", "--contracts", "--evidence-dir")


def configured_root(start: Path) -> Path | None:
    """Return the nearest folder, from ``start`` upwards, whose pyproject.toml has ``[tool.apr-falsify]``."""
    for folder in (start, *start.parents):
        try:
            with open(folder / "pyproject.toml", "rb") as file:
                content = file.read()
        except OSError:
            continue
        if b"apr-falsify" in content and _has_table(content):
            return folder
    return None


def _has_table(content: bytes) -> bool:
    import tomllib

    try:
        tool = tomllib.loads(content.decode("utf-8")).get("tool")
    except (ValueError, RecursionError):
        return False  # pytest says what is wrong with its own configuration file
    return isinstance(tool, dict) and isinstance(tool.get(TABLE), dict)
