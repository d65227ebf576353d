"""Proposals for a mapping file: right for sound recordings, and never one that would hide a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from apr_falsify.commands.starter import ProposalContext, Starter, propose
from apr_falsify.commands.starter_text import starter_text
from apr_falsify.compare.layout import canonical
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.subjects.foreign import read_dump
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.sampling import in_turn
from tests.unit.helpers import TINY
from tests.unit.subjects.dumps import HEAD_DIM, HEADS, KV_HEADS, LAYERS, TOKENS, Arrays, dump_of, target

pytestmark = pytest.mark.bare

S = len(TOKENS)
F32 = npt.NDArray[np.float32]
REQUEST = Request(tokens=TOKENS, layers=range(LAYERS), stages=tuple(STAGES))
QK = (HEADS + KV_HEADS) * HEAD_DIM


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(TINY)


@pytest.fixture(scope="module")
def known(model: Model) -> ProposalContext:
    oracle = capture(model, REQUEST, MemorySink())
    return ProposalContext(geometry=model.geometry, tokens=TOKENS, oracle=oracle, weights=model.weights)


@pytest.fixture(scope="module")
def run(model: Model) -> Trace:
    """A correct run of another program than the oracle."""
    return embedded.capture(model, REQUEST, MemorySink())


def saved(folder: Path, arrays: Arrays, known: ProposalContext) -> tuple[Starter, str]:
    """Write the recording and its starter, unchanged; return what was proposed, and the file's text."""
    np.savez(folder / "dump.npz", **arrays)
    dump = read_dump(folder / "dump.npz")
    starter = propose(dump, known, folder / "dump.npz")
    text = starter_text(starter, dump, known, "dump.npz")
    (folder / "MAPPING.yaml").write_text(text)
    return starter, text


def entry(text: str, stage: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text)["stages"][stage]
    return found


def off(text: str, stage: str) -> str:
    """Return the comments between a stage's ``from`` and the next stage, as one line."""
    part = text.partition(f"\n  {stage}:\n")[2].partition("    from: ")[2]
    lines = [line.strip(" #") for line in part.splitlines()[1:] if line.startswith("    ")]
    return " ".join(lines)


def flat(text: str) -> str:
    """Return all comments as one line."""
    return " ".join(text.replace("#", "").split())


def assert_reads_back(folder: Path, run: Trace) -> None:
    trace = open_recorded(target(folder / "dump.npz")).trace
    assert trace.stages.keys() == run.stages.keys()
    for key, array in run.stages.items():
        np.testing.assert_array_equal(
            canonical(trace.stages[key], key, run.geometry, S), array.data.reshape(array.data.shape)
        )


def nameless(arrays: Arrays) -> Arrays:
    """Call the arrays of a layer ``L0.t17`` ..., in an order of their own."""
    order = sorted({name.rpartition(".")[2] for name in arrays}, key=lambda name: name[::-1])
    return {
        f"{name.rpartition('.')[0]}.t{order.index(name.rpartition('.')[2])}": values
        for name, values in arrays.items()
    }


HF_MODULES = {
    "attn_norm": "input_layernorm",
    "qkv_matmul": "self_attn.qkv_nobias",
    "qkv_bias": "self_attn.qkv_proj",
    "q_post_rope": "self_attn.q_embed",
    "k_post_rope": "self_attn.k_embed",
    "attn_scores": "self_attn.scores",
    "attn_softmax": "self_attn.attn_weights",
    "attention": "self_attn.context",
    "attn_out": "self_attn.o_proj",
    "post_attn_residual": "resid_mid",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_silu": "mlp.act_fn",
    "ffn_swigl": "mlp.gated",
    "ffn_out": "mlp.down_proj",
}


def hugging(arrays: Arrays) -> Arrays:
    """Use HuggingFace's names and orders: batch of one, q and k head-major after RoPE, hidden_states.0 ..."""
    found: Arrays = {}
    for name, values in arrays.items():
        prefix, _, stage = name.rpartition(".")
        layer = prefix.removeprefix("L")
        if stage in ("q_post_rope", "k_post_rope"):
            values = values.reshape(S, -1, HEAD_DIM).swapaxes(0, 1)
        if stage == "embedding":
            found["hidden_states.0"] = values[None]
        elif stage == "post_ffn_residual":
            found[f"hidden_states.{int(layer) + 1}"] = values[None]
        elif layer:
            found[f"model.layers.{layer}.{HF_MODULES[stage]}"] = values[None]
        else:
            found[{"final_norm": "model.norm", "lm_head": "lm_head"}[stage]] = values[None]
    return found


@pytest.mark.parametrize("rename", [lambda arrays: arrays, nameless, hugging], ids=["ours", "none", "hf"])
def test_a_sound_recordings_starter_reads_it_as_it_was(
    rename: Callable[[Arrays], Arrays], run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    starter, _ = saved(tmp_path, rename(dump_of(run)), known)
    assert (starter.missing, starter.unused, starter.conflicts) == ((), (), ())
    assert [proposal for proposal in starter.proposals if proposal.doubts] == []
    assert_reads_back(tmp_path, run)


def test_values_alone_are_said_to_be_no_more_than_that(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    _, text = saved(tmp_path, nameless(dump_of(run)), known)
    assert text.count("its name says nothing") == len({name for _, name in run.stages})


def test_without_an_oracle_every_proposal_says_that_names_support_it_alone(
    run: Trace, tmp_path: Path
) -> None:
    starter, text = saved(tmp_path, dump_of(run), ProposalContext())
    assert text.count("alone: no model and tokens to check its shape against") == len(starter.proposals) > 15
    assert "# tokens: [...]" in text


def interleaved(x: F32) -> F32:
    return x.reshape(S, -1, 2, HEAD_DIM // 2).swapaxes(-1, -2).reshape(S, -1)


def softmax(scores: F32) -> F32:
    masked = np.where(np.tri(S, dtype=bool), scores, -np.inf)
    weights = np.exp(masked - masked.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def every(arrays: Arrays, stage: str, change: Callable[[F32], F32]) -> None:
    for layer in range(LAYERS):
        arrays[f"L{layer}.{stage}"] = change(arrays[f"L{layer}.{stage}"]).astype(np.float32)


def computed_unscaled(arrays: Arrays) -> None:
    every(arrays, "attn_scores", lambda x: x * np.float32(HEAD_DIM**0.5))
    for layer in range(LAYERS):
        arrays[f"L{layer}.attn_softmax"] = softmax(arrays[f"L{layer}.attn_scores"])


def stored_unscaled(arrays: Arrays) -> None:
    every(arrays, "attn_scores", lambda x: x * np.float32(HEAD_DIM**0.5))


def computed_transposed(arrays: Arrays) -> None:
    every(arrays, "attn_scores", lambda x: x.swapaxes(1, 2))
    for layer in range(LAYERS):
        arrays[f"L{layer}.attn_softmax"] = softmax(arrays[f"L{layer}.attn_scores"])


def stored_transposed(arrays: Arrays) -> None:
    every(arrays, "attn_scores", lambda x: x.swapaxes(1, 2))


def weights_interleaved(arrays: Arrays) -> None:
    """q and k come out of permuted weights, and are rotated as if those were not."""
    for stage in ("qkv_matmul", "qkv_bias"):
        every(arrays, stage, lambda x: np.concatenate([interleaved(x[:, :QK]), x[:, QK:]], axis=1))
    for layer in range(LAYERS):
        joined = arrays[f"L{layer}.qkv_bias"]
        arrays[f"L{layer}.q_post_rope"] = turned(joined[:, : HEADS * HEAD_DIM])
        arrays[f"L{layer}.k_post_rope"] = turned(joined[:, HEADS * HEAD_DIM : QK])


def stored_interleaved(arrays: Arrays) -> None:
    for stage in ("qkv_matmul", "qkv_bias"):
        every(arrays, stage, lambda x: np.concatenate([interleaved(x[:, :QK]), x[:, QK:]], axis=1))
    for stage in ("q_post_rope", "k_post_rope"):
        every(arrays, stage, interleaved)


def turned(x: F32) -> F32:
    half = HEAD_DIM // 2
    angle = np.outer(np.arange(S), 1e6 ** (-np.arange(half) / half))[:, None]
    a, b = np.split(x.reshape(S, -1, HEAD_DIM), 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(S, -1).astype(np.float32)


# What the recording shows -> the stage, and what makes it the oracle's.
STORED = {
    "unscaled": (stored_unscaled, "attn_scores", {"layout": ["unscaled"]}),
    "transposed": (stored_transposed, "attn_scores", {"axes": ["heads", "keys", "tokens"]}),
    "interleaved": (stored_interleaved, "qkv_bias", {"layout": ["interleaved"]}),
}


def stored_scaled(arrays: Arrays) -> None:
    every(arrays, "q_post_rope", lambda x: x * np.float32(HEAD_DIM**-0.5))


def garbage_above(arrays: Arrays) -> None:
    every(arrays, "attn_scores", lambda x: x + 9 * np.triu(np.ones_like(x), 1))


STORED["scaled"] = (stored_scaled, "q_post_rope", {"layout": ["scaled"]})
STORED["visible-only"] = (garbage_above, "attn_scores", {"layout": ["visible-only"]})
COMPUTED = {
    "unscaled": (computed_unscaled, "attn_scores", "layout: [unscaled]"),
    "transposed": (computed_transposed, "attn_scores", "axes: [heads, keys, tokens]"),
    "interleaved": (weights_interleaved, "qkv_bias", "layout: [interleaved]"),
}


def rounded(arrays: Arrays, kind: str) -> Arrays:
    """Round what an f32 run computed to a format of fewer bits, on the way out."""
    return {name: x.astype(kind) if x.dtype == np.float32 else x for name, x in arrays.items()}


@pytest.mark.parametrize(("what", "kind"), in_turn(STORED, ["f4", "f2"]))
def test_what_is_only_stored_so_is_proposed_with_its_proof(
    what: str, kind: str, run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    change, stage, said = STORED[what]
    arrays = dump_of(run)
    change(arrays)
    arrays = rounded(arrays, kind)
    _, text = saved(tmp_path, arrays, known)
    assert {key: value for key, value in entry(text, stage).items() if key != "from"} == said
    assert f"replay: stored {what}, it and what is computed from it fit" in " ".join(
        text.replace("#", "").split()
    )
    assert "OFF" not in text
    assert "replay: not what" not in text


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_the_format_that_the_values_show_is_proposed(
    dtype: str, model: Model, known: ProposalContext, tmp_path: Path
) -> None:
    run = embedded.capture(model, REQUEST, MemorySink(), dtype=dtype)
    starter, text = saved(tmp_path, dump_of(run), known)
    assert starter.kept == dtype
    assert yaml.safe_load(text)["dtype"] == dtype
    assert "replay: not what" not in text


def test_scores_may_be_stored_unscaled_and_transposed_at_once(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    arrays = dump_of(run)
    stored_unscaled(arrays)
    stored_transposed(arrays)
    _, text = saved(tmp_path, arrays, known)
    said = entry(text, "attn_scores")
    assert (said["axes"], said["layout"]) == (["heads", "keys", "tokens"], ["unscaled"])
    assert "replay: not what" not in text


def test_pairs_stored_interleaved_are_found_although_the_scores_are_stored_transposed(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    """Interleaved pairs leave the scores as they are: these fit transposed, and only then do the pairs."""
    arrays = dump_of(run)
    for stage in ("q_post_rope", "k_post_rope"):
        every(arrays, stage, interleaved)
    stored_transposed(arrays)
    _, text = saved(tmp_path, arrays, known)
    assert entry(text, "attn_scores")["axes"] == ["heads", "keys", "tokens"]
    assert entry(text, "q_post_rope")["layout"] == ["interleaved"]
    assert entry(text, "k_post_rope")["layout"] == ["interleaved"]


def test_scores_that_were_computed_unscaled_and_stored_transposed_stay_as_they_are(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    arrays = dump_of(run)
    computed_unscaled(arrays)
    stored_transposed(arrays)
    _, text = saved(tmp_path, arrays, known)
    assert entry(text, "attn_scores").keys() == {"from"}
    assert "replay: not what its own inputs make it" in flat(text)


@pytest.mark.parametrize(("what", "kind"), in_turn(COMPUTED, ["f4", "f2"]))
def test_what_may_be_computed_so_stays_off(
    what: str, kind: str, run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    change, stage, line = COMPUTED[what]
    arrays = dump_of(run)
    change(arrays)
    arrays = rounded(arrays, kind)
    _, text = saved(tmp_path, arrays, known)
    assert entry(text, stage).keys() == {"from"}
    assert line in off(text, stage)
    assert "OFF:" in off(text, stage)
    assert "this may be the very fault" in off(text, stage)


def test_what_nothing_was_computed_from_stays_off(run: Trace, known: ProposalContext, tmp_path: Path) -> None:
    arrays = dump_of(run)
    stored_unscaled(arrays)
    kept = {name: x for name, x in arrays.items() if not name.endswith(("attn_softmax", ".attention"))}
    _, text = saved(tmp_path, kept, known)
    assert entry(text, "attn_scores").keys() == {"from"}
    assert "nothing computed from it was recorded" in off(text, "attn_scores")


def test_exchanged_arrays_are_mapped_by_neither_name_nor_value(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    arrays = dump_of(run)
    for layer in range(LAYERS):
        gate, up = f"L{layer}.ffn_gate", f"L{layer}.ffn_up"
        arrays[gate], arrays[up] = arrays[up], arrays[gate]
    starter, text = saved(tmp_path, arrays, known)
    assert {"ffn_gate", "ffn_up"} <= set(starter.missing)
    assert not {"ffn_gate", "ffn_up"} & set(yaml.safe_load(text)["stages"])
    assert '"L{layer}.ffn_gate": by name ffn_gate, by value ffn_up' in text


def test_a_name_of_q_after_the_bias_is_not_taken_for_the_product_where_the_bias_is_missing(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    arrays = {name: x for name, x in dump_of(run).items() if "qkv" not in name}
    for layer in range(LAYERS):
        product = np.asarray(run.stages[layer, "qkv_matmul"].data)
        for name, part in zip("qkv", np.split(product, [HEADS * HEAD_DIM, QK], axis=1), strict=True):
            arrays[f"L{layer}.{name}"] = part
    _, text = saved(tmp_path, arrays, known)
    assert "qkv_matmul" not in yaml.safe_load(text)["stages"]
    assert "by name qkv_bias.k, by value qkv_matmul.k" in text


def test_scores_with_the_mask_added_are_known_by_it_in_either_order(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    arrays = dump_of(run)
    every(arrays, "attn_scores", lambda x: np.where(np.tri(S, dtype=bool), x, -np.inf).swapaxes(1, 2))
    _, text = saved(tmp_path, arrays, known)
    said = entry(text, "attn_scores")
    assert (said["axes"], said["layout"]) == (["heads", "keys", "tokens"], ["causal-masked"])


def test_what_the_fault_spoils_downstream_is_proposed_by_its_name_and_its_replay(
    run: Trace, known: ProposalContext, tmp_path: Path
) -> None:
    arrays = dump_of(run)
    every(arrays, "attention", lambda x: x[:, ::-1])
    _, text = saved(tmp_path, arrays, known)
    assert "replay: not what its own inputs make it in layer 0, 1, 2" in flat(text)
    assert entry(text, "attention") == {"from": "L{layer}.attention"}


def test_bits_of_bf16_are_proposed_as_such(run: Trace, known: ProposalContext, tmp_path: Path) -> None:
    bits = {
        name: (np.ascontiguousarray(x).view("<u4") >> 16).astype("<u2") for name, x in dump_of(run).items()
    }
    starter, text = saved(tmp_path, bits, replace(known, weights=None, oracle=None))
    assert len(starter.proposals) == len({name for _, name in run.stages})
    assert entry(text, "ffn_up") == {"from": "L{layer}.ffn_up", "dtype": "bf16"}
    assert open_recorded(target(tmp_path / "dump.npz")).trace.stages.keys() == run.stages.keys()
