"""``[tool.apr-falsify]`` and a baseline as people garble them: refused with the file, and never a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apr_falsify.commands.lanes import read_lanes
from apr_falsify.contracts.baseline import read_baseline
from apr_falsify.contracts.settings import project_name, read_settings
from apr_falsify.errors import UsageError
from apr_falsify.pytest_plugin.project import configured_root
from apr_falsify.symbols.collect import read_settings as pytest_settings
from apr_falsify.symbols.modules import plugins_of

TABLE = "[tool.apr-falsify]\n"
BROKEN: dict[str, tuple[bytes, str]] = {
    "not-utf-8": (b"\xff\xfe" + TABLE.encode(), "decode"),
    "absurd-number": (TABLE.encode() + b"x = " + b"9" * 5000, "digits"),
    "nested-deeply": (TABLE.encode() + b"x = " + b"[" * 5000, "nested too deeply"),
    "contracts-of-numbers": (TABLE.encode() + b"contracts = [1]", "one of contracts is 1"),
    "contracts-a-number": (TABLE.encode() + b"contracts = 1", "contracts is 1, not a list"),
    "severities-a-list": (TABLE.encode() + b"severities = [1]", "severities is"),
    "severities-of-numbers": (TABLE.encode() + b"severities = {says-not-yet = 1}", "severities.says-not-yet"),
    "sources-a-text": (TABLE.encode() + b'sources = "x"', "sources is 'x', not an object"),
    "sources-of-numbers": (TABLE.encode() + b"sources = {x = 1}", r"sources\.x is 1"),
    "ignores-a-text": (TABLE.encode() + b'ignores = "says-not-yet"', "ignores is"),
    "ignores-of-texts": (TABLE.encode() + b'ignores = ["says-not-yet"]', "one of ignores is"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=list(BROKEN))
def test_settings_that_cannot_be_are_refused_by_their_file(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(UsageError, match=said) as refusal:
        read_settings(tmp_path)
    assert refusal.value.where == str(tmp_path / "pyproject.toml")


ELSEWHERE = {
    **{name: content for name, (content, _) in list(BROKEN.items())[:3]},
    "tool-is-a-number": b"tool = 5",
    "tables-are-numbers": b"[tool]\npytest = 1\nhatch = 2\nsetuptools = 3\napr-falsify = 4\n",
    "project-is-a-text": b"project = 'x'",
    "entry-points-are-a-list": b"[project]\nentry-points = [1]",
}


@pytest.mark.parametrize("content", ELSEWHERE.values(), ids=list(ELSEWHERE))
def test_what_others_settings_do_not_say_is_not_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    assert pytest_settings(tmp_path) is None
    assert plugins_of(tmp_path) == ()
    assert project_name(tmp_path) == tmp_path.name
    assert configured_root(tmp_path) is None


def test_a_lane_that_names_a_path_longer_than_any_is_read(tmp_path: Path) -> None:
    lanes = read_lanes({"x": {"oracle": "a" * 5000, "subject": f"apr:{'b' * 300}.apr"}}, tmp_path)
    assert lanes["x"].oracle == "a" * 5000


NO_BASELINES = {
    "nested-deeply": "[" * 100_000,
    "a-number": "1",
    "problems-a-number": '{"schema": "apr-falsify/baseline/v1", "problems": 1}',
    "problems-of-texts": '{"schema": "apr-falsify/baseline/v1", "problems": ["x"]}',
    "fingerprint-a-list": json.dumps(
        {"schema": "apr-falsify/baseline/v1", "problems": [{"fingerprint": [], "shown": "x"}]}
    ),
    "shown-a-number": json.dumps(
        {"schema": "apr-falsify/baseline/v1", "problems": [{"fingerprint": "x", "shown": 1}]}
    ),
}


@pytest.mark.parametrize("content", NO_BASELINES.values(), ids=list(NO_BASELINES))
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "known.json").write_text(content)
    with pytest.raises(UsageError, match="is no baseline"):
        read_baseline(tmp_path / "known.json")
