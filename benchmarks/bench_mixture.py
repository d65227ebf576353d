"""Claims, of mixtures: one layer of a 30B-A3B shape (128 experts of 768, 8 chosen, hidden 2048), 7 tokens,
takes <= 3 s and <= 1.5 GiB without counting imports, and reads no expert's weights but those chosen; opening
a model of a 235B shape, its names and no weight, takes <= 1 s.

The checkpoints are sparse files in a temporary folder, removed at the end: one of all that layer 0 needs, of
which 1.8 GB lie on the disk (f16, random), and one of 470 GB in 118 files, of which only the headers do. Each
run is a process of its own. Memory is VmHWM above what the process used after its imports and a tiny run;
pages of the mapped file count. What was read of the experts is taken from the kernel: the pages of the file
that the process has touched, to which the kernel adds neighbours of at most 64 KiB (fault-around). The digest
that a trace has of its model needs the file once whole, in a thread of its own; that is read, not mapped, and
the time counts it. The processor's time is printed too: on a busy machine it alone can be compared.

``oracle`` captures every stage of layer 0 from transformers, and ``embedded`` runs our own decoder on it.

    python benchmarks/bench_mixture.py [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import in_own_process, memory, options_of_rounds, peak_since

GIB = 1 << 30
SECONDS, MEMORY, OPENING = 3.0, 1.5, 1.0
TOKENS = (11, 13, 17, 19, 23, 29, 31)
SMALL: Mapping[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40_960,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
LARGE: Mapping[str, Any] = {
    **SMALL,
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "intermediate_size": 12_288,
    "moe_intermediate_size": 1536,
}
FILES = 118
"""Into how many files the published checkpoint of 235B is split."""
Tensor = tuple[str, tuple[int, ...], bool]
"""Its name, its shape, and whether it belongs to layer 0 or to no layer."""


def tensors_of(config: Mapping[str, Any]) -> Iterator[Tensor]:
    """Give each tensor of a checkpoint."""
    from apr_falsify.model.families import family_of, roles_at, shape_of_role
    from apr_falsify.model.geometry import geometry_of_config
    from apr_falsify.model.shape import EXPERT_ROLES

    geometry = geometry_of_config(dict(config))
    weights = family_of(geometry).weights
    for layer in (None, *range(geometry.layers)):
        for role in roles_at(geometry, layer):
            kind = role.partition(".")[0]
            experts = range(geometry.experts) if role in EXPERT_ROLES else (role.partition(".")[2],)
            for expert in experts:
                shape = tuple(shape_of_role(kind, geometry))
                yield weights[kind].format(n=layer, e=expert), shape, layer in (None, 0)


def write_checkpoint(folder: Path, config: Mapping[str, Any], filled: bool) -> Path:
    """Write a checkpoint of holes; with ``filled`` it has no layer but 0, which holds random f16."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    listed = [tensor for tensor in tensors_of(config) if tensor[2] or not filled]
    count = 1 if filled else FILES
    weight_map: dict[str, str] = {}
    step = -(-len(listed) // count)
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        own = listed[number * step : (number + 1) * step]
        write_file(folder / name, own, filled)
        weight_map.update(dict.fromkeys((each for each, _, _ in own), name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_file(path: Path, tensors: Iterable[Tensor], filled: bool) -> None:
    """Write one safetensors file, sparse but for the tensors that shall hold values."""
    header: dict[str, Any] = {}
    values, at = [], 0
    for name, shape, first in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        values += [(at, size)] if filled and first and "lm_head" not in name else []
        at += size
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    block = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float16).tobytes()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        start = file.tell()
        for offset, size in values:
            file.seek(start + offset)
            for done in range(0, size, len(block)):
                file.write(block[: size - done])
        file.truncate(start + at)


def touched(folder: Path) -> int:
    """Return how many bytes of the weight files this process has mapped in, by the kernel's own count."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ", 1)[0]:
            counts = line.endswith(".safetensors") and str(folder) in line
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def warm(way: str) -> int:
    """Do the imports, run a tiny model, and return the memory used then."""
    import apr_falsify.compare.localise
    import apr_falsify.subjects.embedded

    if way == "oracle":
        import torch
        import transformers

        import apr_falsify.oracle.run  # noqa: F401  # its import is not what is measured

        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 64}
        small = transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2)
        ).half()
        small(torch.tensor([[1, 2, 3]]))
    return peak_since()


def one_layer(way: str, folder: Path) -> dict[str, float]:
    """Run layer 0 and return seconds, bytes of memory, and what was read of the files."""
    from apr_falsify.formats.weights import open_model
    from apr_falsify.model.stages import STAGES, Key
    from apr_falsify.oracle.capture import capture
    from apr_falsify.subjects import embedded
    from apr_falsify.traces.capture import MemorySink, Request

    before, start, began = warm(way), time.perf_counter(), time.process_time()
    model = open_model(folder)
    request = Request(tokens=TOKENS, layers=range(1), stages=tuple(STAGES))
    run = capture if way == "oracle" else embedded.capture
    trace = run(model, request, MemorySink(), dtype="f16")
    taken = time.perf_counter() - start
    weights = trace.stages[Key(0, "router_weights")].data
    return {
        "seconds": taken,
        "processor": time.process_time() - began,
        "bytes": memory()["VmHWM"] - before,
        "stages": len(trace.stages),
        "read": touched(folder),
        "chosen": int(np.count_nonzero(np.any(weights != 0, axis=0))),
    }


def opening(folder: Path) -> dict[str, float]:
    """Open a model and return seconds, bytes of memory, and how many tensors it has."""
    from apr_falsify.formats.weights import open_model

    before = warm("opening")
    start, began = time.perf_counter(), time.process_time()
    model = open_model(folder)
    taken = time.perf_counter() - start
    return {
        "seconds": taken,
        "processor": time.process_time() - began,
        "bytes": memory()["VmHWM"] - before,
        "tensors": len(model.weights.tensors),
        "read": touched(folder),
    }


def main() -> None:
    """Measure and print."""
    options = options_of_rounds(__doc__)
    if options.run:
        way, checkpoint = options.run
        found = opening(Path(checkpoint)) if way == "opening" else one_layer(way, Path(checkpoint))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small = write_checkpoint(Path(folder) / "small", SMALL, filled=True)
        large = write_checkpoint(Path(folder) / "large", LARGE, filled=False)
        for way in ("oracle", "embedded"):
            report(way, [in_own_process(__file__, "--run", way, str(small)) for _ in range(options.rounds)])
        report_opening(
            [in_own_process(__file__, "--run", "opening", str(large)) for _ in range(options.rounds)]
        )


def report(way: str, found: list[dict[str, float]]) -> None:
    """Print one way's figures against the targets."""
    taken, processor = (statistics.median(one[what] for one in found) for what in ("seconds", "processor"))
    used = max(one["bytes"] for one in found)
    expert = 3 * 2 * SMALL["hidden_size"] * SMALL["moe_intermediate_size"]
    print(
        f"{way:9} layer 0, {found[0]['stages']:.0f} stages: {taken:.2f} s (target <= {SECONDS} s),"
        f" of which the processor {processor:.2f} s,"
        f" {used / GIB:.2f} GiB (target <= {MEMORY} GiB), {found[0]['chosen']:.0f} experts chosen ="
        f" {found[0]['chosen'] * expert / GIB:.2f} GiB, read of the files {found[0]['read'] / GIB:.2f} GiB"
    )


def report_opening(found: list[dict[str, float]]) -> None:
    """Print the figures of opening a model."""
    taken, processor = (statistics.median(one[what] for one in found) for what in ("seconds", "processor"))
    used = max(one["bytes"] for one in found)
    print(
        f"opening 235B, {found[0]['tensors']:.0f} tensors: {taken:.2f} s (target <= {OPENING} s),"
        f" of which the processor {processor:.2f} s,"
        f" {used / GIB:.2f} GiB, read of the files {found[0]['read'] / GIB:.3f} GiB"
    )


if __name__ == "__main__":
    main()
