"""Typed errors: what a reader sees, and what a process says by its exit."""

from __future__ import annotations

import inspect

import pytest

from apr_falsify import errors
from apr_falsify.errors import AprFalsifyError, ExitCode, TraceError, UndecidedError, nearest

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, AprFalsifyError)]


def test_a_message_says_where_what_expected_and_what_to_do() -> None:
    error = TraceError("too short", where="a/b.bin", expected="12 bytes", remedy="capture again")
    assert str(error).splitlines() == ["a/b.bin: too short", "  expected: 12 bytes", "  try: capture again"]


def test_a_message_leaves_out_what_is_not_known() -> None:
    assert str(TraceError("too short")) == "too short"


def test_an_error_is_placed_once() -> None:
    assert TraceError("bad").at("first").at("second").where == "first"
    assert TraceError("bad").at(None).where is None


@pytest.mark.parametrize("cls", ALL)
def test_unusable_input_exits_2_and_what_is_undecided_4(cls: type[AprFalsifyError]) -> None:
    expected = ExitCode.INCONCLUSIVE if cls is UndecidedError else ExitCode.USAGE
    assert cls("x").exit_code is expected


def test_exit_codes_mean_one_thing_each() -> None:
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4]


def test_the_nearest_name_is_offered_and_none_where_nothing_is_near() -> None:
    assert nearest("attn_softmaxx", ["attn_scores", "attn_softmax"]) == "did you mean 'attn_softmax'?"
    assert nearest("zzz", ["attn_scores"]) == ""
    assert nearest("falsify-a-001", ["FALSIFY-B-002", "FALSIFY-A-001"]) == "did you mean 'FALSIFY-A-001'?"
