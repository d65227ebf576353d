"""An f32 run that was saved in 16 bits: judged with that rounding, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.bisection import Bisection, FindingType, Kind, Verdict
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import TraceError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.subjects import embedded
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink, Request, TraceWriter
from apr_falsify.traces.trace import Trace, read_trace
from tests.sampling import in_turn
from tests.unit.helpers import TINY
from tests.unit.subjects.dumps import apr_trace, dump_of, plain_mapping, target, write

Array = npt.NDArray[Any]
SIXTEEN = ("f16", "bf16")


def rounded(values: Array, kind: str) -> Array:
    if kind == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def saved(
    tmp_path: Path, kind: str, said: Mapping[str, Any], changes: Mapping[Key, Any] | None = None
) -> Trace:
    """The real apr's run, with ``changes``, saved in ``kind`` and read as its mapping says."""
    apr = apr_trace()
    stages = {
        key: replace(array, data=np.array((changes or {}).get(key, array.data), np.float32))
        for key, array in apr.stages.items()
    }
    arrays = {name: rounded(x, kind) for name, x in dump_of(replace(apr, stages=stages)).items()}
    mapping = {**plain_mapping(apr), **said}
    for entry in mapping["stages"].values():
        entry["dtype"] = kind
    return open_recorded(target(write(tmp_path, arrays, mapping))).trace


def judged(subject: Trace) -> Bisection:
    return bisect(apr_trace(), subject, weights=open_model(TINY).weights)


def accused(found: Bisection) -> set[Key]:
    return {(row.layer, row.stage) for row in found.rows if row.verdict is Verdict.INTRODUCES}


@pytest.mark.parametrize("kind", SIXTEEN)
@pytest.mark.parametrize("said", [{"dtype": "f32"}, {}], ids=["f32 is said", "nothing is said"])
def test_a_right_run_is_consistent(tmp_path: Path, kind: str, said: dict[str, str]) -> None:
    found = judged(saved(tmp_path, kind, said))
    assert (found.kind, found.findings, accused(found)) == (Kind.CONSISTENT, (), set())


@pytest.mark.parametrize("kind", SIXTEEN)
def test_a_right_16_bit_run_is_consistent_where_nothing_is_said_of_its_format(kind: str) -> None:
    model = open_model(TINY)
    request = Request(tokens=apr_trace().tokens, layers=range(3), stages=tuple(STAGES))
    run = embedded.capture(model, request, MemorySink(), dtype=kind)
    said = replace(
        run.provenance, runtime="other", dtype="unknown", arithmetic="unknown",
        saved_as={name: kind for _, name in run.stages},
    )  # fmt: skip
    assert judged(replace(run, provenance=said)).kind is Kind.CONSISTENT


FAULTS: Mapping[str, tuple[Key, Any]] = {
    "scores without 1/sqrt(D)": (Key(1, "attn_scores"), lambda x: x * np.float32(32**0.5)),
    "one head of attention off by a tenth": (
        Key(0, "attention"),
        lambda x: np.concatenate([x[:, :32] * np.float32(1.1), x[:, 32:]], axis=1),
    ),
    "ffn_out of the token before": (Key(2, "ffn_out"), lambda x: np.roll(x, 1, axis=0)),
}


@pytest.mark.parametrize(("fault", "kind"), in_turn(FAULTS, SIXTEEN))
def test_a_fault_above_that_rounding_is_located(tmp_path: Path, fault: str, kind: str) -> None:
    key, change = FAULTS[fault]
    wrong = {key: change(np.array(apr_trace().stages[key].data))}
    found = judged(saved(tmp_path, kind, {"dtype": "f32"}, wrong))
    assert key in accused(found)
    # What was computed from the sound stage is not what the faulty one would have given.
    after = {"attn_scores": "attn_softmax", "attention": "attn_out", "ffn_out": "post_ffn_residual"}
    assert accused(found) <= {key, (key[0], after[key[1]])}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_a_run_that_is_said_to_keep_16_bits_and_does_not_is_unmeasured_and_nothing_is_accused(
    tmp_path: Path, kind: str
) -> None:
    found = judged(saved(tmp_path, kind, {"dtype": kind}))
    assert (found.kind, accused(found)) == (Kind.UNMEASURED, set())
    (finding,) = [each for each in found.findings if each.type is FindingType.NOT_THE_SUBJECTS_WEIGHTS]
    assert "let its mapping say dtype: f32" in finding.advice


def test_a_value_that_saving_made_infinite_is_no_error_and_what_follows_is_unmeasured(tmp_path: Path) -> None:
    apr = apr_trace()
    key: Key = Key(0, "post_ffn_residual")
    huge = {k: np.array(apr.stages[k].data) for k in [Key(0, "ffn_out"), key]}
    for data in huge.values():
        data[2, 7] = 7e4
    before = apr.stages[0, "post_attn_residual"].data[2, 7]
    huge[key][2, 7] += before
    found = judged(saved(tmp_path, "f16", {"dtype": "f32"}, huge))
    assert key not in accused(found)
    assert Key(1, "attn_norm") not in accused(found)
    row = next(row for row in found.rows if (row.layer, row.stage) == Key(1, "attn_norm"))
    assert row.verdict is Verdict.UNMEASURED


def test_the_format_is_kept_on_disk_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    trace = saved(tmp_path / "dump", "bf16", {"dtype": "f32"})
    with TraceWriter(tmp_path / "trace") as writer:
        for key, array in trace.stages.items():
            writer.add(key, array.data, array.layout)
        writer.finish(provenance=trace.provenance, geometry=trace.geometry, tokens=trace.tokens)
    again = read_trace(tmp_path / "trace")
    assert again.provenance.saved_as == {name: "bf16" for _, name in trace.stages}
    text = (tmp_path / "trace" / "trace.json").read_text()
    (tmp_path / "trace" / "trace.json").write_text(text.replace('"bf16"', '"bf17"'))
    with pytest.raises(TraceError, match="bf17"):
        read_trace(tmp_path / "trace")
