"""Claim: comparing two 200 MB stages with all figures runs at >= 1.5 GB/s on 2 cores, is >= 5 times as fast
as the same figures written plainly in fp64 NumPy, and takes <= 64 MB beside the arrays.

All figures: cosine, relative L2, norm ratio, greatest difference and where, NaN and Inf counted, profiles per
token, head and channel, cosine without the 1, 2 and 8 largest channels. Both ways run in turn in one process
on the same two memory-resident f32 arrays, and their answers are checked against each other; printed are
medians. GB/s counts both arrays' bytes once. The limit beside it is what this machine needs to read both
arrays once (np.max of each). Peak extra memory is what NumPy and Python allocated (tracemalloc), and what the
process grew by at its highest (VmHWM, Linux only; 0 where it used again what had been freed before).

    python benchmarks/bench_compare.py [--rounds 5] [--megabytes 200]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.axes import Axes
from apr_falsify.compare.metrics import LEFT_OUT, Metrics, compare_arrays

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

HEAD_DIM = 128


def shapes(megabytes: int) -> dict[str, tuple[tuple[int, ...], Axes]]:
    """Return stages of Qwen2.5-7B's geometry of that many MB."""
    values = megabytes * 1_000_000 // 4
    square = math.isqrt(values // 28)
    heads = tuple(f"head {index}" for index in range(28))
    return {
        "ffn_swigl": ((values // 18_944, 18_944), Axes(names=("token", "channel"))),
        "attention": (
            (values // 3584, 3584),
            Axes(names=("token", "channel"), head_dim=HEAD_DIM, heads=heads),
        ),
        "attn_scores": ((28, square, square), Axes(names=("head", "token", "key"))),
    }


def naive(oracle: F32, subject: F32, head_dim: int | None) -> dict[str, object]:
    """Return the same figures, each said in one plain line of fp64 NumPy."""
    finite = np.isfinite(oracle) & np.isfinite(subject)
    o = np.where(finite, oracle, 0).astype(np.float64)
    s = np.where(finite, subject, 0).astype(np.float64)
    d = s - o
    at = np.unravel_index(np.argmax(np.abs(d)), d.shape)
    figures: dict[str, object] = {
        "cosine": plain_cosine(o, s),
        "rel_l2": np.sqrt(np.sum(d**2)) / np.sqrt(np.sum(o**2)),
        "norm_ratio": np.sqrt(np.sum(s**2)) / np.sqrt(np.sum(o**2)),
        "max_abs": np.abs(d).max(),
        "at": tuple(int(index) for index in at),
        "nonfinite": (np.sum(~np.isfinite(oracle)), np.sum(~np.isfinite(subject))),
    }
    for axis in range(o.ndim):
        others = tuple(other for other in range(o.ndim) if other != axis)
        figures[f"axis {axis}"] = plain_profile(o, s, d, others)
    if head_dim is not None:
        split = [x.reshape(len(x), -1, head_dim) for x in (o, s, d)]
        figures["head"] = plain_profile(split[0], split[1], split[2], (0, 2))
    largest = np.argsort(-np.sum(o**2, axis=tuple(range(o.ndim - 1))))
    for k in LEFT_OUT:
        figures[f"without {k}"] = plain_cosine(
            np.delete(o, largest[:k], axis=-1), np.delete(s, largest[:k], axis=-1)
        )
    return figures


def plain_cosine(o: F64, s: F64) -> float:
    return float(np.sum(o * s) / (np.sqrt(np.sum(o**2)) * np.sqrt(np.sum(s**2))))


def plain_profile(o: F64, s: F64, d: F64, axes: tuple[int, ...]) -> tuple[F64, F64]:
    norm = np.sqrt(np.sum(o**2, axis=axes))
    return np.sqrt(np.sum(d**2, axis=axes)) / norm, np.sqrt(np.sum(s**2, axis=axes)) / norm


def agree(ours: Metrics, plain: dict[str, object], axes: Axes) -> None:
    """Stop unless both ways gave the same answers."""
    assert ours.at == plain["at"]
    pairs = [(getattr(ours, name), plain[name]) for name in ("cosine", "rel_l2", "norm_ratio", "max_abs")]
    pairs += [(ours.cosine_without[k], plain[f"without {k}"]) for k in LEFT_OUT]
    names = {f"axis {axis}": name for axis, name in enumerate(axes.names)}
    for key in [*names, *(["head"] if axes.head_dim else [])]:
        profile = ours.per[names.get(key, key)]
        pairs += list(zip((profile.rel_l2, profile.norm_ratio), plain[key], strict=True))
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_extra(action: Callable[[], object]) -> tuple[float, float]:
    """Return how many MB ``action`` took: by the allocator, and by the process at its highest."""
    before = high_water_after_reset()
    action()
    grown = high_water() - before
    tracemalloc.start()
    action()
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return allocated / 1e6, grown


def high_water() -> float:
    """Return the most MB the process has held since the last reset, NaN where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), math.nan)


def high_water_after_reset() -> float:
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5", encoding="ascii")
    return high_water()


def arrays(shape: tuple[int, ...]) -> tuple[F32, F32]:
    """Return two arrays that nearly agree, made with nothing allocated that is larger than they are."""
    rng = np.random.default_rng(0)
    oracle = rng.standard_normal(shape, dtype=np.float32)
    subject = rng.standard_normal(shape, dtype=np.float32)
    subject *= np.float32(1e-3)
    subject += oracle
    return oracle, subject


def measure(oracle: F32, subject: F32, axes: Axes, rounds: int) -> dict[str, float]:
    """Return the median seconds of each way, taken in turn, so that a busy machine slows all of them."""
    plain = naive(oracle, subject, axes.head_dim)
    agree(compare_arrays(oracle, subject, axes), plain, axes)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: compare_arrays(oracle, subject, axes),
        "naive": lambda: naive(oracle, subject, axes.head_dim),
        "read": lambda: (oracle.max(), subject.max()),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, NumPy {np.__version__}, {options.rounds} rounds, medians")
    print(
        f"{'stage':12} {'shape':>13} {'GB/s':>6} {'x naive':>8} {'read GB/s':>10} "
        f"{'extra MB':>9} {'(process)':>9}"
    )
    for name, (shape, axes) in shapes(options.megabytes).items():
        oracle, subject = arrays(shape)
        allocated, grown = peak_extra(partial(compare_arrays, oracle, subject, axes))
        took = measure(oracle, subject, axes, options.rounds)
        size = (oracle.nbytes + subject.nbytes) / 1e9
        print(
            f"{name:12} {'x'.join(map(str, shape)):>13} {size / took['ours']:6.2f} "
            f"{took['naive'] / took['ours']:8.1f} {size / took['read']:10.1f} {allocated:9.1f} {grown:9.1f}"
        )


if __name__ == "__main__":
    main()
