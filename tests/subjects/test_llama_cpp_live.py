"""The real llama.cpp: correct runs of every weight type are clean, what nobody asked for is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apr_falsify.compare.bisection import Bisection, FindingType, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.subjects import embedded
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.llama_cpp.live import LlamaCppSubject
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.llama_models import llama_cpp_or_skip, quantised, random_gguf
from tests.real_model import smollm2_or_skip
from tests.support import DATA

pytestmark = pytest.mark.live

TOKENS = (1780, 314, 216, 34, 27, 34, 47)
TINY_TOKENS = (274, 272, 332, 13, 20, 33)
TINY = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"
RECORDINGS = DATA / "llama-cpp-smollm2-135m"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    llama_cpp_or_skip()


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return smollm2_or_skip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


def subject_of(path: Path, options: dict[str, str] | None = None) -> LlamaCppSubject:
    subject = open_llama_cpp(Target(path=path, options=options or {}))
    assert isinstance(subject, LlamaCppSubject)
    return subject


def run(
    path: Path,
    tokens: tuple[int, ...] = TOKENS,
    layers: range | None = None,
    *,
    arithmetic: str | None = None,
    **options: str,
) -> Bisection:
    """Bisect llama.cpp on ``path`` against the embedded decoder; by default in all layers."""
    model = open_model(path)
    layers = layers or range(model.geometry.layers)
    request = Request(tokens=tokens, layers=layers, stages=tuple(STAGES), feeder=True)
    named = {name.replace("_", "-"): value for name, value in options.items()}
    trace = subject_of(path, named).capture(request, MemorySink())
    oracle = embedded.capture(model, request, MemorySink())
    return bisect(
        oracle,
        trace,
        weights=model.weights,
        subject_weights=model.weights,
        layers=tuple(layers),
        arithmetic=arithmetic,
    )


def residuals(result: Bisection) -> list[float]:
    return [row.residual for row in result.rows if row.residual is not None]


def assert_clean(result: Bisection, stages: int) -> None:
    """Assert that nothing is accused and every stage is explained, each far below its floor."""
    assert (result.kind, result.findings, result.complete) == (Kind.CONSISTENT, (), True)
    assert len(residuals(result)) == stages
    assert max(residuals(result)) <= 1e-6
    assert max(row.excess for row in result.rows if row.excess is not None) < 0.6


def arithmetics(result: Bisection) -> list[tuple[tuple[str, ...], str]]:
    """Return the findings, which must be about the arithmetic: stages, and what was observed."""
    assert {finding.type for finding in result.findings} == {FindingType.ARITHMETIC}
    assert (result.sources, int(result.exit_code)) == ((), 1)
    return [(found.stages, found.explanation.partition(": ")[2]) for found in result.findings]


@pytest.mark.real_model
def test_all_layers_of_smollm2_are_explained_and_nothing_is_accused(smollm2: Path) -> None:
    result = run(smollm2)
    assert_clean(result, 30 * 15 + 3)
    used = {row.arithmetic for row in result.rows if row.stage in ("qkv_matmul", "ffn_out", "attn_out")}
    assert used == {"q4_1 x q8_1 blocks of 32"}


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K", "F16"])
@pytest.mark.real_model
def test_every_weight_type_of_smollm2_is_explained(kind: str, smollm2: Path, folder: Path) -> None:
    path = quantised(smollm2, folder / f"{kind}.gguf", kind)
    # Layers 2, 11 and 28 have the massive activations that part an integer kernel's sums most.
    for layers in (range(2, 3), range(11, 12), range(28, 29)):
        assert_clean(run(path, layers=layers), 15)
    path.unlink()


QWEN2_KINDS = {
    "Q2_K": "q2_k x q8_k blocks of 256",
    "Q3_K_M": "q3_k x q8_k blocks of 256",
    "Q4_K_M": "q4_k x q8_k blocks of 256",
    "Q5_K_M": "q5_k x q8_k blocks of 256",
    "Q6_K": "q6_k x q8_k blocks of 256",
    "IQ4_XS": "iq4_xs x q8_k blocks of 256",
    "IQ3_S": "iq3_s x q8_k blocks of 256",
    "TQ2_0": "tq2_0 x q8_k blocks of 256",
    "BF16": "bf16 x bf16",
    "ALL_F32": "f32 x f32",
}


@pytest.mark.parametrize("kind", sorted(QWEN2_KINDS))
def test_a_qwen2_with_biases_and_half_split_pairs_is_explained_in_every_type(kind: str, folder: Path) -> None:
    result = run(quantised(TINY, folder / f"tiny-{kind}.gguf", kind), TINY_TOKENS)
    assert_clean(result, 3 * 16 + 3)
    assert QWEN2_KINDS[kind] in {row.arithmetic for row in result.rows}


def test_a_qwen3_whose_heads_are_normed_is_explained(folder: Path) -> None:
    path = random_gguf(folder / "qwen3.gguf", model_type="qwen3", head_dim=32)
    assert_clean(run(path, (1, 5, 9, 22, 30, 3)), 2 * 15 + 3)


@pytest.mark.parametrize(
    "biases", [("attention_bias",), ("mlp_bias",), ("attention_bias", "mlp_bias")], ids=str
)
def test_a_llama_with_biases_is_explained(biases: tuple[str, ...], folder: Path) -> None:
    path = random_gguf(folder / f"{'-'.join(biases)}.gguf", **dict.fromkeys(biases, True))
    stages = 15 + ("attention_bias" in biases)
    assert_clean(run(path, (1, 5, 9, 22, 30, 3)), 2 * stages + 3)


@pytest.mark.parametrize("count", [2, 5, 33, 100])
@pytest.mark.real_model
def test_prompts_of_any_length_are_explained(count: int, smollm2: Path) -> None:
    tokens = tuple(int(token) for token in np.random.default_rng(count).integers(0, 49_000, count))
    assert_clean(run(smollm2, tokens, range(2)), 2 * 15 + 1)


@pytest.mark.real_model
def test_the_correct_run_is_the_recorded_one_to_the_last_bit(smollm2: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.npz"
    request = Request(tokens=TOKENS, layers=range(30), stages=tuple(STAGES))
    subject_of(smollm2, {"raw-capture": str(raw)}).capture(request, MemorySink())
    with np.load(raw) as ours, np.load(RECORDINGS / "what-is-2-plus-2.npz") as recorded:
        shared = [name for name in recorded.files if not name.startswith(("norm-", "kqv-"))]
        assert len(shared) == 63
        for name in shared:
            assert ours[name].shape == recorded[name].shape
            assert ours[name].tobytes() == recorded[name].tobytes()
        assert tuple(ours["token_ids"]) == TOKENS


@pytest.mark.parametrize(
    ("recording", "options"),
    [("rope-base-50000", {"rope-freq-base": "50000"}), ("k-cache-q8_0", {"cache-type-k": "q8_0"})],
)
@pytest.mark.real_model
def test_a_live_run_gives_what_was_recorded_of_the_same_settings(
    recording: str, options: dict[str, str], smollm2: Path
) -> None:
    request = Request(tokens=TOKENS, layers=range(30), stages=tuple(STAGES))
    live = subject_of(smollm2, options).capture(request, MemorySink())
    target = Target(path=RECORDINGS / f"{recording}.npz", model=open_model(smollm2), tokens=TOKENS)
    recorded: Trace = open_llama_cpp(target).capture(request, MemorySink())
    assert len(recorded.stages) == 48
    for key, array in recorded.stages.items():
        assert live.stages[key].layout == array.layout
        assert live.stages[key].data.tobytes() == array.data.tobytes()


@pytest.mark.real_model
def test_a_rope_base_nobody_asked_for_is_located_and_named(smollm2: Path) -> None:
    result = run(smollm2, layers=range(2), rope_freq_base="50000")
    found = [(finding.layer, finding.stages) for finding in result.sources]
    assert found == [(layer, (f"{role}_post_rope",)) for layer in (0, 1) for role in "qk"]
    assert all("50000" in finding.explanation for finding in result.sources)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"])
@pytest.mark.real_model
def test_a_quantised_k_cache_is_located_and_named(kind: str, smollm2: Path) -> None:
    ((stages, said),) = arithmetics(run(smollm2, layers=range(2), cache_type_k=kind))
    assert stages == ("attn_scores",)
    assert said.startswith(f"{kind} k cache, Hadamard-rotated fits")
    assert said.endswith("expected is f16 q and k")


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
def test_a_k_cache_of_short_heads_is_not_rotated(kind: str) -> None:
    ((stages, said),) = arithmetics(run(TINY, TINY_TOKENS, cache_type_k=kind))
    assert stages == ("attn_scores",)
    assert said.startswith(f"{kind} k cache fits")


def test_heads_that_are_no_power_of_two_are_turned_in_parts(folder: Path) -> None:
    path = random_gguf(folder / "qwen3-192.gguf", model_type="qwen3", head_dim=192)
    result = run(path, (1, 5, 9, 22, 30, 3), cache_type_k="q4_0")
    ((_, said),) = arithmetics(result)
    assert said.startswith("q4_0 k cache, Hadamard-rotated fits")
    assert max(residuals(result)) <= 1e-6


def test_a_recording_of_wide_heads_is_turned_back_in_blocks_of_64(folder: Path, tmp_path: Path) -> None:
    """What others' callbacks hand out has no node of what was turned back: it has no name in the graph."""
    path = random_gguf(folder / "qwen3-128.gguf", model_type="qwen3", head_dim=128)
    tokens, raw = (1, 5, 9, 22, 30, 3), tmp_path / "raw.npz"
    request = Request(tokens=tokens, layers=range(2), stages=("attention",))
    everything = Request(tokens=tokens, layers=range(2), stages=tuple(STAGES))
    options = {"cache-type-v": "q8_0", "flash-attn": "on", "raw-capture": str(raw)}
    live = subject_of(path, options).capture(everything, MemorySink())
    with np.load(raw) as arrays:
        named = {name: arrays[name] for name in arrays.files if not name.startswith("kqv_unrotated")}
    np.savez(tmp_path / "named.npz", **named)
    target = Target(path=tmp_path / "named.npz", model=open_model(path), tokens=tokens)
    recorded = open_llama_cpp(target).capture(request, MemorySink())
    for layer in range(2):
        expected = live.stages[layer, "attention"].data
        np.testing.assert_allclose(recorded.stages[layer, "attention"].data, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q5_1"])
@pytest.mark.real_model
def test_a_quantised_v_cache_is_located_and_named(kind: str, smollm2: Path) -> None:
    result = run(smollm2, layers=range(2), cache_type_v=kind, flash_attn="on")
    ((stages, said),) = arithmetics(result)
    assert stages == ("attention",)
    assert said.startswith(f"f16 q and k; {kind} v cache, Hadamard-rotated fits")


@pytest.mark.parametrize(
    ("options", "observed"),
    [
        ({"cache_type_k": "q8_0"}, "q8_0 k cache"),
        ({"cache_type_k": "q4_0"}, "q4_0 k cache"),
        ({"cache_type_v": "q8_0", "flash_attn": "on"}, "f16 q and k; q8_0 v cache"),
    ],
    ids=["q8_0-k", "q4_0-k", "q8_0-v"],
)
@pytest.mark.real_model
def test_a_turned_cache_is_explained_to_the_last_digit_where_values_lie_on_edges(
    options: dict[str, str], observed: str, smollm2: Path
) -> None:
    """In 60 tokens of 6 layers some turned value lies so near an edge that sums in f64 cross it."""
    tokens = tuple(int(token) for token in np.random.default_rng(1).integers(0, 49_000, 60))
    result = run(smollm2, tokens, range(6), **options)
    ((_, said),) = arithmetics(result)
    assert said.startswith(f"{observed}, Hadamard-rotated fits")
    assert max(residuals(result)) <= 1e-6


@pytest.mark.real_model
def test_a_value_beside_the_largest_of_its_block_is_on_its_own_side_of_an_edge(smollm2: Path) -> None:
    """In 64 tokens of a 4-bit K cache one such value of q lies on the edge of two steps, in layer 19."""
    tokens = tuple(int(token) for token in np.random.default_rng(11).integers(0, 49_000, 300))[:64]
    result = run(smollm2, tokens, range(19, 20), cache_type_k="q4_0")
    ((_, said),) = arithmetics(result)
    assert said.startswith("q4_0 k cache, Hadamard-rotated fits")
    assert max(residuals(result)) <= 1e-6


@pytest.mark.real_model
def test_a_cache_that_the_user_states_is_what_he_expects(smollm2: Path) -> None:
    stated = "q8_0 k cache, Hadamard-rotated; q4_0 v cache, Hadamard-rotated"
    options = {"cache_type_k": "q8_0", "cache_type_v": "q4_0", "flash_attn": "on"}
    result = run(smollm2, layers=range(2), arithmetic=stated, **options)
    assert (result.kind, result.findings) == (Kind.CONSISTENT, ())


@pytest.mark.real_model
def test_what_flash_attention_hides_is_said_and_nothing_is_accused(smollm2: Path) -> None:
    result = run(smollm2, layers=range(2), flash_attn="on")
    assert (result.kind, result.sources, result.complete) == (Kind.UNMEASURED, (), False)
    said = [finding.explanation for finding in result.findings if "attn_scores" in finding.stages]
    assert len(said) == 2
    assert all("flash attention computes it within one operation" in text for text in said)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": "4"}, {"ubatch_size": "3"}, {"batch_size": "1"}, {"threads": "2"}, {"repack": "off"}],
    ids=lambda options: "+".join(f"{name}={value}" for name, value in options.items()),
)
@pytest.mark.real_model
def test_batches_threads_and_layout_of_weights_change_no_verdict(
    options: dict[str, str], smollm2: Path
) -> None:
    assert_clean(run(smollm2, layers=range(28, 30), **options), 2 * 15)


@pytest.mark.real_model
def test_a_capture_changes_no_bit_of_what_llama_cpp_computes(smollm2: Path) -> None:
    request = Request(tokens=TOKENS, layers=range(30), stages=("lm_head",))
    alone = subject_of(smollm2).capture(request, MemorySink())
    everything = Request(tokens=TOKENS, layers=range(30), stages=tuple(STAGES))
    watched = subject_of(smollm2).capture(everything, MemorySink())
    key = Key(None, "lm_head")
    assert [*alone.stages] == [key]
    assert alone.stages[key].data.tobytes() == watched.stages[key].data.tobytes()
