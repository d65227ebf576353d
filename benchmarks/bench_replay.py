"""Claim: judging one layer of Qwen2.5-7B's geometry in Q4_K and Q6_K (7 tokens), every stage replayed under
explained arithmetic, takes <= 8 s with one arithmetic, + 3 s for each further one tried, and <= 1.5 GiB above
the interpreter, on 2 cores; 512 tokens of SmolLM2, all layers, take no more memory of their own than 4 x the
largest stage plus 64 MB (the mapped weights and the mapped trace are files, dropped when memory is short).

The 7B layer is a GGUF of random blocks: q, k, o, gate, up in Q4_K, v and down in Q6_K, as Q4_K_M files have
them. The subject is the embedded runtime in 8-bit activations; it is judged once knowing that (one arithmetic
beside the plain one) and once not (the whole table is tried). Beside it, in the same run: the oracle's own
load and forward of that layer, from the same file. Each run is a process of its own. Memory of its own is
RssAnon, sampled every millisecond, above what judging a single layer of few tokens had needed.

    python benchmarks/bench_replay.py [--rounds 3] [--tokens 512]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as commands.main does, before NumPy is imported

import numpy as np
from common import in_own_process, memory, peak_since, smollm2

GIB, MB = 1 << 30, 1 << 20
TOKENS = (11, 13, 17, 19, 23, 29, 31)
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 3584, 28, 4, 128, 18_944, 2048
KNOWN = "f32; q8_k blocks of 256"
ONE, FURTHER, ABOVE = 8.0, 3.0, 1.5


def write_layer(path: Path) -> None:
    """Write a GGUF of one random layer; blocks are random bytes with small f16 scales."""
    import gguf

    q4, q6, f32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q6_K", "F32"))
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "qwen2")
    for key, value in {
        "block_count": 1,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "context_length": 32_768,
    }.items():
        writer.add_uint32(f"qwen2.{key}", value)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen2.rope.freq_base", 1e6)
    width, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {
        "token_embd.weight": (f32, VOCAB, HIDDEN),
        "output_norm.weight": (f32, HIDDEN),
        "blk.0.attn_norm.weight": (f32, HIDDEN),
        "blk.0.ffn_norm.weight": (f32, HIDDEN),
        "blk.0.attn_q.weight": (q4, width, HIDDEN),
        "blk.0.attn_k.weight": (q4, kv, HIDDEN),
        "blk.0.attn_v.weight": (q6, kv, HIDDEN),
        "blk.0.attn_q.bias": (f32, width),
        "blk.0.attn_k.bias": (f32, kv),
        "blk.0.attn_v.bias": (f32, kv),
        "blk.0.attn_output.weight": (q4, HIDDEN, width),
        "blk.0.ffn_gate.weight": (q4, FFN, HIDDEN),
        "blk.0.ffn_up.weight": (q4, FFN, HIDDEN),
        "blk.0.ffn_down.weight": (q6, HIDDEN, FFN),
    }
    for name, (kind, *shape) in shapes.items():
        if kind is f32:
            writer.add_tensor(name, rng.normal(0, 0.5, shape).astype(np.float32))
        else:
            writer.add_tensor(name, _blocks(rng, kind, shape), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()


def _blocks(rng: np.random.Generator, kind: Any, shape: list[int]) -> np.ndarray[Any, Any]:
    """Return random blocks of ``kind``: [rows, bytes]; scales lead in Q4_K and end in Q6_K."""
    size = {"Q4_K": 144, "Q6_K": 210}[kind.name]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // 256, size), dtype=np.uint8)
    scale = np.full((*blocks.shape[:2], 2), 1e-4, np.float16).view(np.uint8)
    if kind.name == "Q4_K":
        blocks[..., :4] = scale
    else:
        blocks[..., 208:] = scale[..., :2]
    return blocks.reshape(shape[0], -1)


def capture(
    path: Path, tokens: tuple[int, ...], layers: int, arithmetic: str, out: Path | None = None
) -> Any:
    """Run the embedded runtime, in memory or into a trace directory (whose stages are memory maps)."""
    from apr_falsify.formats.weights import open_model
    from apr_falsify.model.stages import STAGES
    from apr_falsify.subjects import embedded
    from apr_falsify.subjects.kernel import arithmetic_named
    from apr_falsify.traces.capture import MemorySink, Request, TraceWriter

    request = Request(tokens=tokens, layers=range(layers), stages=tuple(STAGES))
    chosen = arithmetic_named(arithmetic)
    model = open_model(path)
    if out is None:
        return embedded.capture(model, request, MemorySink(), arithmetic=chosen)
    with TraceWriter(out) as writer:
        return embedded.capture(model, request, writer, arithmetic=chosen)


def judge_layer(path: Path, trace_path: Path, known: bool) -> dict[str, float]:
    """Judge the captured layer and return seconds, bytes above the start, and the arithmetics tried."""
    from dataclasses import replace

    from apr_falsify.compare.judge import judge
    from apr_falsify.formats.weights import open_model
    from apr_falsify.traces.trace import read_trace

    trace = read_trace(trace_path)
    if not known:
        trace = replace(trace, provenance=replace(trace.provenance, arithmetic="unknown"))
    weights = open_model(path).weights
    before = peak_since()
    start = time.perf_counter()
    judged = judge(trace, weights, list(trace.stages))
    seconds = time.perf_counter() - start
    tried = max(len(entry.fits) for entry in judged.values())
    excess = max(entry.fit.excess for entry in judged.values() if entry.fit is not None)
    return {"seconds": seconds, "above": memory()["VmHWM"] - before, "tried": tried, "excess": excess}


def oracle_forward(path: Path) -> dict[str, float]:
    """Return the seconds of loading and running the layer in transformers, from the same file."""
    from apr_falsify.formats.weights import open_model
    from apr_falsify.model.stages import STAGES
    from apr_falsify.oracle.capture import capture as capture_oracle
    from apr_falsify.traces.capture import MemorySink, Request

    request = Request(tokens=TOKENS, layers=range(1), stages=tuple(STAGES))
    start = time.perf_counter()
    capture_oracle(open_model(path), request, MemorySink())
    return {"seconds": time.perf_counter() - start}


@contextmanager
def own_memory() -> Iterator[dict[str, int]]:
    """Sample this process's anonymous memory and note the most of it above the start."""
    found, base, done = {"peak": 0}, memory()["RssAnon"], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            found["peak"] = max(found["peak"], memory()["RssAnon"] - base)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def judge_long(tokens: int) -> dict[str, float]:
    """Judge all layers of SmolLM2 at ``tokens`` tokens; return seconds and memory beside its allowance."""
    from apr_falsify.compare.judge import judge
    from apr_falsify.formats.weights import open_model
    from apr_falsify.traces.trace import read_trace

    path = smollm2()
    ids = tuple(int(token) for token in np.random.default_rng(0).integers(0, 49_152, tokens))
    weights = open_model(path).weights
    with tempfile.TemporaryDirectory() as folder:
        few = capture(path, ids[:7], 1, "f32")
        judge(few, weights, list(few.stages))
        trace = read_trace(capture(path, ids, 30, "f32", Path(folder) / "trace").path)
        largest = max(array.data.nbytes for array in trace.stages.values())
        start = time.perf_counter()
        with own_memory() as found:
            judge(trace, weights, list(trace.stages))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": found["peak"], "largest": largest}


def report(rounds: int, tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, trace = Path(folder) / "layer.gguf", Path(folder) / "trace"
        write_layer(path)
        capture(path, TOKENS, 1, KNOWN, trace)
        runs = {
            name: [in_own_process(__file__, name, str(path), str(trace)) for _ in range(rounds)]
            for name in ("known", "unknown", "oracle")
        }
    middle = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
    above = max(run["above"] for run in runs["known"] + runs["unknown"]) / GIB
    further = runs["unknown"][0]["tried"] - runs["known"][0]["tried"]
    each = (middle["unknown"] - middle["known"]) / further
    beside = middle["known"] / middle["oracle"]
    print(
        f"one arithmetic: {middle['known']:.1f} s (claim {ONE}), {beside:.1f} x the oracle's load and forward"
    )
    print(f"each of {further:.0f} further: {each:.2f} s (claim {FURTHER})")
    print(f"memory above the start: {above:.2f} GiB (claim {ABOVE})")
    print(f"oracle, load and forward of the same layer: {middle['oracle']:.1f} s")
    long = in_own_process(__file__, "long", str(tokens))
    allowed, peak = (4 * long["largest"] + 64 * MB) / MB, long["peak"] / MB
    print(f"SmolLM2, {tokens} tokens, 30 layers: {long['seconds']:.1f} s")
    print(f"memory of its own: {peak:.0f} MB (claim {allowed:.0f}: 4 x {long['largest'] / MB:.0f} + 64)")


STEPS: Mapping[str, Any] = {
    "known": lambda path, trace: judge_layer(Path(path), Path(trace), known=True),
    "unknown": lambda path, trace: judge_layer(Path(path), Path(trace), known=False),
    "oracle": lambda path, trace: oracle_forward(Path(path)),
    "long": lambda tokens: judge_long(int(tokens)),
}


def main() -> None:
    import sys

    if len(sys.argv) > 1 and sys.argv[1] in STEPS:
        print(json.dumps(STEPS[sys.argv[1]](*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    report(options.rounds, options.tokens)


if __name__ == "__main__":
    main()
