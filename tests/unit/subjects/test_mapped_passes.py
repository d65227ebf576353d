"""Recordings of runs with a cache, in chunks, padded, of a batch, and of a decode step alone.

What was recorded is transformers with its own DynamicCache; the oracle beside it is transformers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.bisection import Kind
from apr_falsify.errors import AprFalsifyError
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import Trace
from tests.unit.oracle.conftest import OpenCheckpoint, checkpoint
from tests.unit.subjects.dumps import write
from tests.unit.subjects.pass_dumps import Arrays, by_pass, end_to_end, hf_run, judged, mapping_of

pytestmark = pytest.mark.bare

__all__ = ["checkpoint"]

S = 9
DECODE = Passes(sizes=(6, 1, 1, 1))
CHUNKS = Passes(sizes=(4, 4, 1))
FAMILIES = ("qwen2", "gemma2", "gemma3", "gpt2", "phi3", "deepseek_v2")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_right_port_with_a_cache_is_consistent_in_every_form(
    name: str, checkpoint: OpenCheckpoint, tmp_path: Path
) -> None:
    model = checkpoint(name)
    oracle = hf_run(model, Passes.whole(S))
    for more_keys, (passes, beyond) in enumerate(((DECODE, np.nan), (CHUNKS, 7.5))):
        port, sizes = hf_run(model, passes), list(passes.sizes)
        for each_pass in (False, True):
            arrays = by_pass(port, more_keys) if each_pass else end_to_end(port, beyond)
            said = mapping_of(port, each_pass=each_pass, passes=sizes)
            found = judged(tmp_path / f"{more_keys}-{each_pass}", model, arrays, said, oracle)
            assert (found.kind, found.findings) == (Kind.CONSISTENT, ()), (passes, each_pass)


@pytest.mark.parametrize("passes", [DECODE, CHUNKS], ids=["decode", "chunks"])
def test_a_cache_that_forgets_what_is_outside_the_window_holds_fewer_keys(
    passes: Passes, checkpoint: OpenCheckpoint, tmp_path: Path
) -> None:
    model = checkpoint("gemma3")
    port = hf_run(model, passes)
    arrays, forgotten = by_pass(port), 0
    for layer, window in enumerate(model.geometry.windows):
        for number, size in enumerate(passes.sizes):
            for stage in ("attn_scores", "attn_softmax"):
                values = arrays[f"p{number}/L{layer}.{stage}"]
                kept = values.shape[-1] if window is None else min(values.shape[-1], window - 1 + size)
                forgotten += values.shape[-1] - kept
                arrays[f"p{number}/L{layer}.{stage}"] = values[..., values.shape[-1] - kept :]
    assert forgotten
    said = mapping_of(port, each_pass=True, passes=list(passes.sizes))
    for stage in said["stages"].values():
        stage.pop("layout", None)
    found = judged(tmp_path, model, arrays, said, hf_run(model, Passes.whole(S)))
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())


@pytest.fixture(scope="module")
def qwen(checkpoint: OpenCheckpoint) -> Model:
    return checkpoint("qwen2")


@pytest.fixture(scope="module")
def whole(qwen: Model) -> Trace:
    return hf_run(qwen, Passes.whole(S))


@pytest.fixture(scope="module")
def decoded(qwen: Model) -> Trace:
    return hf_run(qwen, DECODE)


def last_passes(arrays: Arrays, first: int) -> Arrays:
    return {name: values for name, values in arrays.items() if int(name[1 : name.index("/")]) >= first}


@pytest.mark.parametrize("first", [1, 3])
def test_decode_steps_alone_are_judged_with_the_keys_of_the_oracle(
    qwen: Model, whole: Trace, decoded: Trace, tmp_path: Path, first: int
) -> None:
    arrays = last_passes(by_pass(decoded), first)
    said = mapping_of(decoded, each_pass=True, passes=list(DECODE.sizes))
    found = judged(tmp_path / "right", qwen, arrays, said, whole)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
    for name in arrays:
        if name.endswith("L1.attn_scores"):
            arrays[name][:, :, 2] = arrays[name][:, :, 4]  # what a cache that holds key 4 twice gives
    wrong = judged(tmp_path / "wrong", qwen, arrays, said, whole)
    assert wrong.kind is not Kind.CONSISTENT
    accused = {(source.layer, *source.stages) for source in wrong.findings if source.type == "source"}
    assert (1, "attn_scores") in accused
    assert any("position 2 with that of 4" in source.explanation for source in wrong.findings)


def test_one_row_of_a_whole_run_is_a_decode_step_too(
    qwen: Model, whole: Trace, decoded: Trace, tmp_path: Path
) -> None:
    """As ports save it: arrays of one row, scores of one query and all keys, and nothing said of passes."""
    arrays = {name[3:]: values for name, values in last_passes(by_pass(decoded), 3).items()}
    found = judged(tmp_path / "all", qwen, arrays, mapping_of(decoded), whole)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
    path = write(tmp_path / "own", arrays, mapping_of(decoded, tokens=[decoded.tokens[-1]]))
    with pytest.raises(AprFalsifyError, match="scores have 9 keys, and 1 token ids are said"):
        open_recorded(Target(path=path, model=qwen))
    known = open_recorded(Target(path=path, model=qwen, tokens=decoded.tokens))
    assert (known.trace.tokens, known.trace.passes.unseen) == (decoded.tokens, 8)


# --- padding and batches -------------------------------------------------------------------------------


def padded(trace: Trace, order: list[int]) -> Arrays:
    """Return a padded run with its tokens in another order, as right padding or holes have them."""
    arrays = {}
    for (layer, stage), array in trace.stages.items():
        axes, values = STAGES[stage].axes, array.data
        if "tokens" in axes:
            values = values.take(order, axes.index("tokens"))
        if axes.count("tokens") > 1:
            values = values.take(order, -1)
        arrays[stage if layer is None else f"L{layer}.{stage}"] = values
    return arrays


LEFT = list(range(S))
RIGHT = [*range(2, S), 0, 1]
HOLES = [0, *range(2, 5), 1, *range(5, S)]

SAID: dict[str, tuple[list[int], Any]] = {
    "left": (LEFT, {"left": 2}),
    "right": (RIGHT, {"right": 2}),
    "mask": (HOLES, {"mask": "mask"}),
}


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gemma2"])
@pytest.mark.parametrize("how", SAID)
def test_a_right_padded_row_is_consistent_and_its_padding_no_data(
    name: str, how: str, checkpoint: OpenCheckpoint, tmp_path: Path
) -> None:
    model = checkpoint(name)
    port = hf_run(model, Passes(sizes=(S,), padding=2))
    order, padding = SAID[how]
    arrays = padded(port, order)
    for stage, values in arrays.items():
        if values.ndim == 2:  # garbage in the rows of padding
            values[[order.index(0), order.index(1)]] = np.nan if stage.endswith("norm") else 3e4
    arrays["mask"] = np.array([at > 1 for at in order])
    said = mapping_of(port, tokens=[port.tokens[at] for at in order], padding=padding)
    oracle = hf_run(model, Passes(sizes=(S,), padding=2))
    found = judged(tmp_path, model, arrays, said, oracle)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())


def test_an_oracle_without_the_padding_is_compared_with_the_tokens_that_are_none(
    qwen: Model, tmp_path: Path
) -> None:
    from apr_falsify.oracle.capture import capture
    from apr_falsify.traces.capture import MemorySink, Request

    port = hf_run(qwen, Passes(sizes=(7, 1, 1), padding=2))
    plain = Request(tokens=port.tokens[2:], layers=range(3), stages=tuple(STAGES))
    said = mapping_of(port, passes=[7, 1, 1], padding={"left": 2})
    found = judged(tmp_path, qwen, end_to_end(port, np.inf), said, capture(qwen, plain, MemorySink()))
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
    assert all(row.accumulated is None or row.accumulated.rel_l2 < 1e-4 for row in found.rows)


def test_the_row_of_a_batch_is_taken_out(qwen: Model, whole: Trace, tmp_path: Path) -> None:
    other = {name: values[..., ::-1] * 2 for name, values in end_to_end(whole).items()}
    arrays = {name: np.stack((other[name], values)) for name, values in end_to_end(whole).items()}
    arrays["ids"] = np.stack((np.array(whole.tokens)[::-1], np.array(whole.tokens)))
    said = mapping_of(whole, tokens="ids", row=1)
    said["stages"]["attn_norm"]["axes"] = ["batch", "tokens", "hidden"]
    found = judged(tmp_path, qwen, arrays, said, whole)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())


def test_a_row_that_sees_the_keys_of_another_is_named(qwen: Model, whole: Trace, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    arrays = {
        name: np.stack((values, drawn.normal(size=values.shape).astype("f4")))
        for name, values in end_to_end(whole).items()
    }
    heads, size = qwen.geometry.heads, qwen.geometry.head_dim
    q = arrays["L1.q_post_rope"][0].reshape(S, heads, size).transpose(1, 0, 2)
    k = arrays["L1.k_post_rope"][1].reshape(S, -1, size).transpose(1, 2, 0)
    arrays["L1.attn_scores"][0] = q @ k.repeat(heads // len(k), axis=0) / np.sqrt(size)
    said = mapping_of(whole, row=0)
    named = {source.stages: source for source in judged(tmp_path, qwen, arrays, said, whole).sources}
    assert named[("attn_scores",)].layer == 1
    assert "the keys of row 1 of the batch" in named[("attn_scores",)].explanation


def test_padding_that_shows_itself_is_read_as_such_and_told(qwen: Model, tmp_path: Path) -> None:
    from dataclasses import replace

    from apr_falsify.oracle.capture import capture
    from apr_falsify.traces.capture import MemorySink
    from tests.unit.subjects.pass_dumps import request_for

    passes = Passes(sizes=(S,), padding=3)
    request = request_for(qwen, S, passes)
    request = replace(request, tokens=(0, 0, 0, *request.tokens[3:]))
    port = capture(qwen, request, MemorySink())
    path = write(tmp_path, end_to_end(port), mapping_of(port))
    subject = open_recorded(Target(path=path, model=qwen))
    assert subject.trace.passes == passes
    assert "the first 3 tokens are padding" in subject.notes[0]


# --- what cannot be ------------------------------------------------------------------------------------

Edit = Callable[[Arrays, dict[str, Any]], object]


def said_so(**keys: Any) -> Edit:
    return lambda arrays, said: said.update(keys)


REFUSED: dict[str, tuple[Edit, str]] = {
    "passes-that-do-not-add-up": (said_so(passes=[6, 1, 1]), "hold 8, and 9 were run"),
    "passes-of-nothing": (said_so(passes=[9, 0]), "from 1 that add up"),
    "passes-of-halves": (said_so(passes=[8.5, 0.5]), "not a whole number"),
    "no-passes-said": (lambda arrays, said: said.pop("passes"), "nothing says which they are"),
    "a-pass-missing": (
        lambda arrays, said: arrays.pop("p2/L0.attn_norm"),
        "no 'p2/L0.attn_norm', pass 2 of attn_norm",
    ),
    "a-pass-too-many": (
        lambda arrays, said: arrays.update({"p4/L0.attn_norm": arrays["p3/L0.attn_norm"]}),
        "'p4/L0.attn_norm' is of pass 4",
    ),
    "overlapping-passes": (
        lambda arrays, said: arrays.update({"p1/L0.attn_norm": np.zeros((2, 96), np.float32)}),
        r"has the shape \[2, 96\]",
    ),
    "too-few-keys": (
        lambda arrays, said: arrays.update({"p3/L0.attn_scores": np.zeros((4, 1, 5), np.float32)}),
        r"has the shape \[4, 1, 5\]",
    ),
    "positions-of-floats": (
        lambda arrays, said: (arrays.update(at=np.arange(9.0)), said.update(positions="at")),
        "holds no positions",
    ),
    "positions-below-zero": (said_so(positions=[*range(8), -1]), "one of positions is -1"),
    "too-few-positions": (said_so(positions=[0, 1]), "2 positions for 9 tokens"),
    "padding-of-everything": (said_so(padding={"left": 9}), "9 of 9 tokens"),
    "padding-nowhere": (said_so(padding="above"), "padding is 'above'"),
    "padding-without-a-number": (said_so(padding="left"), "does not say how many tokens are padding"),
    "a-mask-too-short": (
        lambda arrays, said: (arrays.update(m=np.ones(4, bool)), said.update(padding={"mask": "m"})),
        "a mask of 4 tokens",
    ),
    "two-rows-as-one": (
        lambda arrays, said: (
            arrays.update(ids=np.array([said["tokens"], said["tokens"]])),
            said.update(tokens="ids"),
        ),
        "the token ids of 2 rows of a batch",
    ),
    "a-row-that-is-not-there": (
        lambda arrays, said: (
            arrays.update(ids=np.array([said["tokens"], said["tokens"]])),
            said.update(tokens="ids", row=2),
        ),
        "row 2 of a batch of 2",
    ),
    "a-row-below-zero": (said_so(row=-1), "row is -1"),
}


@pytest.mark.parametrize("defect", REFUSED)
def test_passes_that_cannot_be_are_refused(qwen: Model, decoded: Trace, tmp_path: Path, defect: str) -> None:
    edit, words = REFUSED[defect]
    arrays = by_pass(decoded)
    said = mapping_of(decoded, each_pass=True, passes=list(DECODE.sizes))
    edit(arrays, said)
    path = write(tmp_path, arrays, said)
    with pytest.raises(AprFalsifyError, match=words) as raised:
        open_recorded(Target(path=path, model=qwen))
    assert raised.value.where is not None
