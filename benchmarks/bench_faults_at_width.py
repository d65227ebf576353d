"""Claim: through the real apr, at Qwen2.5-7B's width, a fault of any stage that a file reaches is located.

A sound GGUF file is the oracle's. In a copy of it one thing is made wrong, in its blocks where it has blocks:
a row's scale, a block's, a neighbouring layer's tensor, a bias that was not loaded, the rotary base. That
copy is given to ``apr-falsify bisect --subject apr:COPY``, and the sources that it names must be the very
stages that the fault is in, with either side's weights. The sound file must be ``consistent``. Then one
fault a stage is in the file together, and all of them must be named.

    python benchmarks/bench_faults_at_width.py                       # draws a file: 2 layers, Q4_K with Q6_K
    python benchmarks/bench_faults_at_width.py MODEL.gguf            # a Qwen2 file
    python benchmarks/bench_faults_at_width.py MODEL.gguf "o of"     # the faults that have these words alone
    python benchmarks/bench_faults_at_width.py MODEL.gguf together   # all stages' faults in one file

Stages that no weight reaches (scores, softmax, SwiGLU, sums) are seeded by ``apr-falsify faults`` in the
embedded runtime and in torch. Prints a table; exits 1 where anything else was said. Takes 1.3 GB of memory a
layer, and the file's size three times on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.commands.specs import DEFAULT_MODEL
from apr_falsify.exam.material import BLUEPRINTS
from apr_falsify.exam.wide import write_wide
from apr_falsify.formats.gguf import GgufFile
from apr_falsify.formats.weights import open_model
from apr_falsify.model.families import family_of
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.stages import Key

PROGRAM = Path(sys.executable).parent / "apr-falsify"
WEIGHTS = ("subject", "oracle")

Bytes = npt.NDArray[np.uint8]

SCALES: Mapping[str, tuple[int, ...]] = {"q4_k": (0, 2), "q6_k": (208,), "q8_0": (0,)}
"""Block format -> where a block holds the f16 factors of its weights (``ggml-common.h``)."""

BLOCK_BYTES: Mapping[str, int] = {"q4_k": 144, "q6_k": 210, "q8_0": 34}


class EditedFile:
    """A GGUF file whose tensors and constants are changed where they lie, and put back.

    Args:
        path: the file.

    """

    def __init__(self, path: Path) -> None:
        self.geometry = open_model(path).geometry
        self._tensors = GgufFile(path).tensors
        self._names = family_of(self.geometry).gguf_weights
        self._architecture = family_of(self.geometry).gguf_architectures[0]
        self._bytes: Bytes = np.memmap(path, dtype=np.uint8, mode="r+")
        self._replaced: list[tuple[int, Bytes]] = []

    def rows(self, role: str, layer: int | None) -> Bytes:
        """Return a copy of a tensor's bytes, [rows, bytes of one]."""
        info = self._info(role, layer)
        held = self._bytes[info.offset : info.offset + info.nbytes]
        return np.array(held).reshape(-1, info.row_bytes)

    def format(self, role: str, layer: int | None) -> str:
        """Return the number format of a tensor."""
        return self._info(role, layer).type

    def put(self, role: str, layer: int | None, rows: Bytes) -> None:
        """Replace a tensor's bytes."""
        info = self._info(role, layer)
        assert rows.nbytes == info.nbytes, "a tensor of another size"
        self._write(info.offset, rows)

    def put_constant(self, key: str, value: float) -> None:
        """Replace an f32 number of the metadata."""
        name = f"{self._architecture}.{key}".encode()
        head = len(name).to_bytes(8, "little") + name + (6).to_bytes(4, "little")  # 6 is f32
        at = bytes(self._bytes[: 1 << 20]).index(head) + len(head)
        self._write(at, np.frombuffer(np.float32(value).tobytes(), np.uint8))

    def undo(self) -> None:
        """Put back what was replaced."""
        while self._replaced:
            at, before = self._replaced.pop()
            self._bytes[at : at + len(before)] = before

    def _write(self, at: int, values: Bytes) -> None:
        flat = values.reshape(-1)
        self._replaced.append((at, np.array(self._bytes[at : at + len(flat)])))
        self._bytes[at : at + len(flat)] = flat

    def _info(self, role: str, layer: int | None) -> Any:
        return self._tensors[self._names[role].format(n=layer)]


Edit = Callable[[EditedFile, int | None], None]


def row_scaled(role: str, factor: float, *, one_block: bool = False) -> Edit:
    """Multiply one row, or one of its blocks."""

    def edit(file: EditedFile, layer: int | None) -> None:
        rows, kind = file.rows(role, layer), file.format(role, layer)
        row = rows[len(rows) // 3]
        if kind in SCALES:
            held = row.reshape(-1, BLOCK_BYTES[kind])
            held = held[len(held) // 2 :][:1] if one_block else held
            for at in SCALES[kind]:
                scale = np.ascontiguousarray(held[:, at : at + 2]).view(np.float16)
                held[:, at : at + 2] = (scale * np.float16(factor)).view(np.uint8)
        else:
            numbers = row.view({"f32": np.float32, "f16": np.float16}[kind])
            numbers *= numbers.dtype.type(factor)
        file.put(role, layer, rows)

    return edit


def vector_times(role: str, factor: float, channels: slice = slice(None)) -> Edit:
    """Multiply a norm's weight or a bias, or some channels of it; 0 is one that was never loaded."""

    def edit(file: EditedFile, layer: int | None) -> None:
        values = file.rows(role, layer)
        values.view(np.float32)[0, channels] *= np.float32(factor)
        file.put(role, layer, values)

    return edit


def of_neighbour(*roles: str) -> Edit:
    """Take the tensors of a neighbouring layer that has them in the same format."""

    def edit(file: EditedFile, layer: int | None) -> None:
        assert layer is not None
        other = layer + 1 if layer + 1 < file.geometry.layers else layer - 1
        for role in roles:
            file.put(role, layer, file.rows(role, other))

    return edit


def rows_shifted(role: str) -> Edit:
    """Shift all rows by one."""
    return lambda file, layer: file.put(role, layer, np.roll(file.rows(role, layer), 1, axis=0))


def exchanged(first: str, second: str) -> Edit:
    """Put each tensor in the other's place."""

    def edit(file: EditedFile, layer: int | None) -> None:
        one, other = file.rows(first, layer), file.rows(second, layer)
        file.put(first, layer, other)
        file.put(second, layer, one)

    return edit


def rope_base(factor: float) -> Edit:
    """Use another rotary base."""
    return lambda file, layer: file.put_constant("rope.freq_base", file.geometry.rope.theta * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One fault.

    Attributes:
        name: what the table calls it.
        stages: the stages that it makes wrong.
        edit: makes the file wrong.
        everywhere: whether it is in every layer.

    """

    name: str
    stages: tuple[str, ...]
    edit: Edit
    everywhere: bool = False

    def layer(self, turn: int, layers: int) -> int | None:
        """Return the layer that is edited."""
        return None if self.stages[0] in ("final_norm", "lm_head") else turn % layers

    def truth(self, layer: int | None, layers: int) -> set[Key]:
        """Return the stages that are wrong."""
        at = range(layers) if self.everywhere else (layer,)
        return {Key(n, stage) for n in at for stage in self.stages}


def _planted(stages: str, name: str, edit: Edit, *, everywhere: bool = False) -> Planted:
    return Planted(name=name, stages=tuple(stages.split()), edit=edit, everywhere=everywhere)


FAULTS = (
    _planted(
        "attn_norm", "one channel of the norm's weight + 2 %", vector_times("attn_norm", 1.02, slice(7, 8))
    ),
    _planted("attn_norm", "the norm of a neighbouring layer", of_neighbour("attn_norm")),
    _planted("qkv_matmul", "one row of q + 2 %", row_scaled("q", 1.02)),
    _planted("qkv_matmul", "k of a neighbouring layer", of_neighbour("k")),
    _planted("qkv_matmul", "one block of v's row halved", row_scaled("v", 0.5, one_block=True)),
    _planted("qkv_bias", "q's bias twice", vector_times("q_bias", 2)),
    _planted("qkv_bias", "k's bias not loaded", vector_times("k_bias", 0)),
    _planted("qkv_bias", "v's bias of a neighbouring layer", of_neighbour("v_bias")),
    _planted("q_post_rope k_post_rope", "rotary base 10 % off", rope_base(1.1), everywhere=True),
    _planted("attn_out", "o of a neighbouring layer", of_neighbour("o")),
    _planted("attn_out", "one row of o - 1 %", row_scaled("o", 0.99)),
    _planted("ffn_norm", "the norm's weight + 1 %", vector_times("ffn_norm", 1.01)),
    _planted("ffn_gate", "one block of gate's row doubled", row_scaled("gate", 2, one_block=True)),
    _planted("ffn_up", "up's rows off by one", rows_shifted("up")),
    _planted("ffn_gate ffn_up", "gate and up exchanged", exchanged("gate", "up")),
    _planted("ffn_out", "one row of down + 1 %", row_scaled("down", 1.01)),
    _planted("ffn_out", "down of a neighbouring layer", of_neighbour("down")),
    _planted(
        "final_norm", "one channel of the norm's weight - 5 %", vector_times("final_norm", 0.95, slice(9, 10))
    ),
    _planted("lm_head", "the head's rows off by one", rows_shifted("lm_head")),
    _planted("lm_head", "one row of the head + 2 %", row_scaled("lm_head", 1.02)),
)
"""One fault at least for every stage that a weight or a constant of the file reaches."""


TOGETHER = "one fault a stage, all together"


def together() -> list[tuple[int, Planted]]:
    """Return the first fault of every stage, with its turn."""
    first: dict[tuple[str, ...], tuple[int, Planted]] = {}
    for turn, fault in enumerate(FAULTS):
        first.setdefault(fault.stages, (turn, fault))
    return [held for held in first.values() if held[1].everywhere or len(held[1].stages) == 1]


def bisected(sound: Path, subject: Path, layers: int, weights: str, folder: Path) -> dict[str, Any]:
    """Return what ``bisect`` says; the oracle's trace in ``folder`` is used again, the subject's is not."""
    shutil.rmtree(folder / "run" / "subject", ignore_errors=True)
    sides = (
        "--oracle",
        sound,
        "--subject",
        f"apr:{subject}",
        "--layers",
        f"0..{layers}",
        "--weights",
        weights,
    )
    command = [str(part) for part in (PROGRAM, "bisect", *sides, "--out", folder / "run", "--format", "json")]
    with imports_in(folder / "cache") as around:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def imports_in(place: Path) -> Iterator[dict[str, str]]:
    """Give an environment in which imported models lie in ``place``, which is removed afterwards."""
    try:
        yield {**os.environ, "APR_FALSIFY_CACHE": str(place)}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sources(found: Mapping[str, Any]) -> set[Key]:
    """Return the stages that were named."""
    return {Key(source["layer"], stage) for source in found["sources"] for stage in source["stages"]}


def named(keys: set[Key]) -> str:
    """Return stages as a table names them."""
    ordered = sorted(keys, key=lambda key: (key.stage, -1 if key.layer is None else key.layer))
    return ", ".join(
        key.stage if key.layer is None else f"{key.stage} of layer {key.layer}" for key in ordered
    )


def row(*cells: str) -> None:
    """Print a row of the table."""
    print("|", " | ".join(cells), "|", flush=True)


def print_fault(name: str, truth: set[Key], weights: str, found: Mapping[str, Any]) -> bool:
    """Print what came of a fault; whether it was located."""
    located = sources(found) == truth
    said = "; ".join(dict.fromkeys(source["explanation"] for source in found["sources"]))
    verdict = "located" if located else f"NOT LOCATED: {named(sources(found)) or found['kind']}"
    row(name, named(truth), weights, verdict, said)
    return located


def planted(file: EditedFile, faults: Iterable[tuple[int, Planted]]) -> set[Key]:
    """Make the file wrong in some ways; return the stages that are wrong."""
    truth: set[Key] = set()
    for turn, fault in faults:
        layer = fault.layer(turn, file.geometry.layers)
        fault.edit(file, layer)
        truth |= fault.truth(layer, file.geometry.layers)
    return truth


def cases(wanted: str) -> Iterator[tuple[str, str, list[tuple[int, Planted]]]]:
    """Give each case: its name, whose weights it is replayed with, and its faults with their turns."""
    for turn, fault in enumerate(FAULTS):
        # By turns with the weights that apr ran, and with the oracle's: then the activations alone tell.
        if wanted in fault.name:
            yield fault.name, WEIGHTS[turn % 2], [(turn, fault)]
    for weights in WEIGHTS if wanted in TOGETHER else ():
        yield TOGETHER, weights, together()


def drawn(folder: Path) -> Path:
    """Return a file of Qwen2.5-7B's width."""
    geometry = geometry_of_config(BLUEPRINTS["qwen2-wide"].config)
    return write_wide(folder / "sound.gguf", geometry, "q4_k", 0, DEFAULT_MODEL)


def main() -> int:
    """Plant every fault; 1 where one was not located, or the sound file was accused."""
    arguments = dict(enumerate(sys.argv[1:]))
    wanted = arguments.get(1, "")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sound = Path(arguments[0]) if 0 in arguments else drawn(folder)
        layers = open_model(sound).geometry.layers
        row("fault", "planted in", "replayed with the weights of", "verdict", "explanation")
        row(*["---"] * 5)
        found = bisected(sound, sound, layers, "subject", folder)
        good = [found["kind"] == "consistent"]
        row("none", "", "subject", found["kind"], named(sources(found)))
        copy = folder / "wrong.gguf"
        shutil.copyfile(sound, copy)
        file = EditedFile(copy)
        for name, weights, faults in cases(wanted):
            truth = planted(file, faults)
            good.append(print_fault(name, truth, weights, bisected(sound, copy, layers, weights, folder)))
            file.undo()
    print(
        f"{sum(good[1:])} of {len(good) - 1} located; the sound file {'consistent' if good[0] else 'ACCUSED'}"
    )
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
