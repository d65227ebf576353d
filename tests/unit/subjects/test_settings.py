"""Settings for a runtime: read by its own table, refused where it has no such setting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from apr_falsify.commands.bisect import bisect
from apr_falsify.errors import UsageError
from apr_falsify.subjects.interface import RuntimeSetting, Target, read_options
from apr_falsify.subjects.registry import RUNTIMES, open_subject

KNOWN = {
    "threads": RuntimeSetting(read=int, expected="a whole number"),
    "flash-attn": RuntimeSetting(read=lambda text: {"on": 1, "off": 0}[text], expected="on or off"),
}


def test_values_are_read_by_the_runtimes_own_table() -> None:
    assert read_options({"threads": "2", "flash-attn": "on"}, KNOWN, "x") == {"threads": 2, "flash-attn": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"thread": "2"},
            r"no setting 'thread'\n  expected: threads, flash-attn\n  try: did you mean 'threads'",
        ),
        ({"threads": "two"}, r"'two' is no value of threads\n  expected: threads=a whole number"),
        ({"flash-attn": "maybe"}, r"'maybe' is no value of flash-attn\n  expected: flash-attn=on or off"),
    ],
    ids=["unknown", "no-number", "no-choice"],
)
def test_what_a_runtime_cannot_take_is_refused_with_what_it_can(
    options: Mapping[str, str], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(options, KNOWN, "x")
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize("runtime", [name for name, row in RUNTIMES.items() if not row.settings()])
def test_a_runtime_without_settings_takes_none(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{runtime} has no setting 'threads'"):
        open_subject(runtime, Target(path=tmp_path, options={"threads": "1"}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("threads",), "not a setting: 'threads'"),
        (("=1",), "not a setting: '=1'"),
        (("threads=",), "not a setting: 'threads='"),
        (("a=1", "a=2"), "a is given twice"),
    ],
    ids=["no-value", "no-name", "empty-value", "twice"],
)
def test_what_is_no_key_and_value_is_refused(given: tuple[str, ...], said: str) -> None:
    arguments = [part for pair in given for part in ("--subject-option", pair)]
    result = CliRunner().invoke(bisect, arguments)
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
