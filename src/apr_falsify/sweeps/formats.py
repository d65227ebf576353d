"""What other systems read: JUnit, a matrix of GitHub Actions, an array script of Slurm."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from apr_falsify.errors import ExitCode, SweepError
from apr_falsify.sweeps.job import AXES, Job
from apr_falsify.sweeps.plan import SweepPlan
from apr_falsify.sweeps.summary import JobOutcome, Summary

MOST_OF_MATRIX = 256
"""Jobs that a matrix of GitHub Actions may have (its documentation, "Usage limits")."""


def junit(summary: Summary) -> str:
    """Return the JUnit XML of a sweep: a test a job; one that measured nothing is an error, never a pass."""
    suite = ElementTree.Element(
        "testsuite", name=_printable(f"sweep {summary.name}"), tests=str(len(summary.outcomes))
    )
    counts = {"failure": 0, "error": 0}
    total = 0.0
    for one in summary.outcomes:
        seconds = 0.0 if one.result is None else one.result.seconds
        total += seconds
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{one.job.axes['model']}.{one.job.axes['subject']}",
            name="+".join(one.job.axes[axis] for axis in AXES[2:] if axis in one.job.axes) or "bisect",
            time=f"{seconds:.3f}",
        )
        kind = _kind(one)
        if kind is not None:
            counts[kind] += 1
            message = "; ".join(filter(None, (one.word, *one.sources)))
            ElementTree.SubElement(case, kind, message=_printable(message)).text = _printable(
                "\n".join(filter(None, (one.says, one.job.command)))
            )
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("time", f"{total:.3f}")
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _kind(one: JobOutcome) -> str | None:
    if one.exit_code is ExitCode.OK:
        return None
    return "failure" if one.exit_code is ExitCode.DIVERGENCE else "error"


def _printable(text: str) -> str:
    """Return a text without the characters that XML 1.0 cannot hold."""
    return "".join(sign if sign in "\n\t" or sign.isprintable() else "?" for sign in text)


def matrix(plan: SweepPlan) -> str:
    """Return the JSON of ``strategy.matrix``: a job an entry.

    Raises:
        SweepError: more jobs than a matrix may have.

    """
    if len(plan.jobs) > MOST_OF_MATRIX:
        raise SweepError(
            f"{len(plan.jobs)} jobs, and a matrix of GitHub Actions has {MOST_OF_MATRIX} at most",
            where=plan.name,
            remedy="make it several sweep files, or run several jobs an entry with `sweep run`",
        )
    return json.dumps({"include": [{"job": job.id} for job in plan.jobs]})


def slurm(plan: SweepPlan, file: str) -> str:
    """Return an array script: a job a task, all into one directory that the nodes share."""
    minutes = int(plan.seconds // 60) + 2
    memory = max([plan.memory, *(job.reserve for job in plan.jobs)]) >> 20
    name = re.sub(r"[^\w.-]", "-", plan.name)
    return f"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{len(plan.jobs) - 1}
#SBATCH --time={minutes}
#SBATCH --mem={memory}M
#SBATCH --cpus-per-task=1
set -euo pipefail
apr-falsify sweep run {shlex.quote(file)} --index "$SLURM_ARRAY_TASK_ID"
"""


def plan_json(plan: SweepPlan, jobs: Sequence[Job]) -> str:
    """Return the jobs of a sweep file as JSON."""
    data = {
        "schema": "apr-falsify/sweep-plan/v1",
        "name": plan.name,
        "seconds": plan.seconds,
        "memory": plan.memory,
        "jobs": [job.to_json() for job in jobs],
    }
    return json.dumps(data, indent=1)
