"""Filling the templates. Everything from outside is escaped by Jinja2; nothing is marked as safe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_falsify.errors import MissingDependencyError
from apr_falsify.evidence.page.heat import LEVELS, NOT_FINITE
from apr_falsify.evidence.page.words import LEGEND, STATES, figure, place, ranges, sentence, state_word
from apr_falsify.portable import stated_name

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the page that ``template`` makes of ``values``.

    Raises:
        MissingDependencyError: jinja2 is not installed.

    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> jinja2.Environment:
    """Return what holds the templates; each is compiled once a process."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            f"a report needs jinja2 ({error})", remedy="pip install 'apr-falsify[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters.update(
        figure=figure,
        place=place,
        ranges=ranges,
        sentence=sentence,
        state_word=state_word,
        stated_name=stated_name,
    )
    environment.globals.update(states=STATES, legend=LEGEND, level_names=_level_names())
    return environment


def _level_names() -> dict[int, str]:
    names = {index: name for index, (_, name) in enumerate(LEVELS, start=1)}
    return {0: "rounding", **names, NOT_FINITE: "not finite"}


_INVISIBLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ud800-\\udfff]"
)


def shown(value: object) -> object:
    """Return a text with every character that cannot be seen, or turns others around, written as its code."""
    if type(value) is not str:
        return value
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
