"""Proposals for recordings that hold what no run would: odd numbers in names, whole numbers without end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apr_falsify.commands.print_mapping import mapping_starter
from apr_falsify.commands.starter import token_arrays
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.mapped_arrays import MOST_TOKENS
from apr_falsify.subjects.recorded import RecordedSubject
from apr_falsify.traces.capture import Request, TraceWriter
from tests.unit.subjects.dumps import TOKENS, Arrays, apr_trace, dump_of


def written(folder: Path, arrays: Arrays) -> Path:
    np.savez(folder / "dump.npz", **arrays)
    return folder / "dump.npz"


def starter(path: Path, oracle: str | None = None) -> str:
    return mapping_starter(path, oracle, tokens=None, dtype=None, device="cpu")


def test_a_number_of_thousands_of_digits_in_a_name_is_no_layer(tmp_path: Path) -> None:
    names = [f"h.{layer}.attn" for layer in (0, 1, "9" * 5000, "9" * 12)]
    text = starter(written(tmp_path, {name: np.ones((6, 256), np.float32) for name in names}))
    assert "h.{layer}.attn" in text
    assert "9" * 12 in text


def test_more_whole_numbers_than_any_context_has_tokens_are_no_token_ids(tmp_path: Path) -> None:
    arrays = {"ids": np.array(TOKENS), "counts": np.zeros(MOST_TOKENS + 1, np.int8)}
    assert token_arrays(read_dump(written(tmp_path, arrays)), vocab=512) == {"ids": TOKENS}


def test_a_nan_that_signals_makes_no_warning(tmp_path: Path) -> None:
    """A cast of one is an invalid operation to NumPy; warnings are errors here."""
    trace = apr_trace()
    with TraceWriter(tmp_path / "trace") as writer:
        request = Request(tokens=TOKENS, layers=range(3), stages=tuple(STAGES))
        RecordedSubject(trace=trace).capture(request, writer)
    arrays = dump_of(trace)
    for values in arrays.values():
        values.view(np.uint32).reshape(-1)[::7] = 0x7F800001
    assert "final_norm" in starter(written(tmp_path, arrays), str(tmp_path / "trace"))
