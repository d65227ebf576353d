"""Kernels: what a process is told, and that it then really computes with other machine code."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from apr_falsify.exam.kernels import KERNELS, OWN

SCRIPT = "import json; from apr_falsify.exam.kernels import numpy_facts; print(json.dumps(numpy_facts()))"


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_says_how_many_threads_every_library_may_use(name: str) -> None:
    kernel = KERNELS[name]
    environment = kernel.environment({"PATH": "/bin", "OMP_NUM_THREADS": "7"})
    assert environment["PATH"] == "/bin"
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert environment[variable] == str(kernel.threads)


def test_a_kernel_does_not_inherit_what_another_one_was_told() -> None:
    told = KERNELS["sse"].environment({})
    assert told["OPENBLAS_CORETYPE"] == "Nehalem"
    assert KERNELS[OWN].environment(told).keys().isdisjoint(KERNELS["sse"].variables)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="kernels of x86-64 alone")
def test_a_process_computes_with_the_kernels_that_it_is_told() -> None:
    found = {}
    for name in (OWN, "sse"):
        environment = KERNELS[name].environment(os.environ)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[name] = json.loads(done.stdout)
    assert found["sse"]["openblas"] == "Nehalem"
    assert found[OWN]["numpy_digest"] != found["sse"]["numpy_digest"]
