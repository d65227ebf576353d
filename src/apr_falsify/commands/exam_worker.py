"""A worker process of the exam: it reads cases from stdin, one a line, and answers with their outcomes.

    python -m apr_falsify.commands.exam_worker MODELS OWN

MODELS is the folder of models that all workers share, OWN a folder for this one alone. The kernels that it
computes with are those of its environment (``exam.kernels``); its first line says which they really are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from apr_falsify.commands.apr_host import find_apr
from apr_falsify.commands.hosts import TorchModels
from apr_falsify.commands.hosts_in_passes import hosts_of
from apr_falsify.commands.smollm2 import smollm2_path
from apr_falsify.commands.specs import DEFAULT_MODEL
from apr_falsify.exam.kernels import numpy_facts, operands
from apr_falsify.exam.plan import SMOLLM2
from apr_falsify.exam.recipes import case_of, outcome_to_json
from apr_falsify.exam.store import Store
from apr_falsify.exam.trial import Examiner


def examiner_in(models: Path, own: Path) -> Examiner:
    """Return what runs trials in this process.

    Args:
        models: where models are, for all processes.
        own: where this process alone may write.

    """
    store = Store(models, DEFAULT_MODEL, {SMOLLM2: smollm2_path()}, own=own)
    loaded = TorchModels(store)
    hosts = hosts_of(loaded)
    apr = find_apr(own, lambda material: loaded.drop_wide())
    if apr is not None:
        hosts["apr"] = apr
    return Examiner(store, hosts, loaded.capture, own)


def facts() -> dict[str, str]:
    """Return which kernels this process really computes with, as far as its libraries say."""
    from apr_falsify.oracle.libraries import kernel_facts

    return {**numpy_facts(), **kernel_facts(operands())}


def main() -> None:
    """Answer case after case until stdin ends."""
    models, own = map(Path, sys.argv[1:3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exam is interrupted, and it ends its workers itself
    signal.signal(signal.SIGTERM, _end)
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    examiner = examiner_in(models, own)
    print(json.dumps(facts()), file=answers)
    for line in sys.stdin:
        outcome = examiner.trial(case_of(json.loads(line)))
        print(json.dumps(outcome_to_json(outcome)), file=answers)


def _end(signal_number: int, frame: object) -> NoReturn:
    sys.exit(128 + signal_number)  # and with it, what runs for us


if __name__ == "__main__":
    main()
