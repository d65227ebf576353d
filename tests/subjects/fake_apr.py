"""Programs that stand where ``apr`` should: shell scripts that play a recording back, or fail."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.support import DATA

MODEL = DATA / "apr-tiny-qwen2" / "base-q4k.apr"
RECORDING = DATA / "apr-tiny-qwen2" / "base-q4k"
"""What the real ``apr trace`` left of that model."""

TOKENS = (274, 272, 332, 13, 20, 33)

_PRELUDE = """#!/bin/sh
echo "$*" >> "$0.calls"
verb=$1
while [ $# -gt 0 ]; do
  case "$1" in
    --save-tensor) names=$2;;
    --save-tensor-dir) dir=$2;;
    -o) made=$2;;
  esac
  shift
done
ids() { echo 'Token ids:    [274, 272, 332, 13, 20, 33] (6 tokens)'; }
play() { mkdir -p "$dir"; cp -R "$recording/." "$dir"; chmod -R u+w "$dir"; }
"""

PLAY = "ids; play"
"""What a sound program does when it is asked to trace."""

FAILING: Mapping[str, tuple[str, str]] = {
    "writes-nothing": ("true", "printed no token ids"),
    "says-ids-and-writes-nothing": ("ids", "wrote no stage file"),
    "prints-garbage": ("cat $recording/layer-0/*.bin; printf '\\377\\033[31m\\r\\0'", "printed no token ids"),
    "no-ids-in-the-brackets": ("echo 'Token ids: [] (0 tokens)'; play", "printed no token ids"),
    "no-such-file": ("echo 'error: File not found' >&2; exit 3", "exited with 3 (no such file)"),
    "validation": ("echo 'error: Validation failed' >&2; exit 5", "exited with 5 (validation failed)"),
    "inference": ("ids; echo 'error: Inference failed' >&2; exit 8", "exited with 8 (inference failed)"),
    "panic": ("ids; echo \"thread 'main' panicked at x.rs\" >&2; exit 101", "exited with 101 (it panicked)"),
    "killed-at-once": ("kill -KILL $$", "was killed by SIGKILL"),
    "killed-half-way": ("ids; play; kill -SEGV $$", "was killed by SIGSEGV"),
    "killed-child": ("ids; sh -c 'kill -KILL $$'; exit $?", "exited with 137 (128 + SIGKILL)"),
    "writes-all-and-fails": ("ids; play; exit 1", "exited with 1"),
    "cut-off-file": (
        "ids; play; f=$dir/layer-0/attn_out.bin; head -c 100 $f > $f.x; mv $f.x $f",
        "wrote an unusable layer-0/attn_out.bin",
    ),
    "empty-file": ("ids; play; : > $dir/layer-0/attn_norm.bin", "wrote an unusable layer-0/attn_norm.bin"),
    "file-of-another-layer": (
        "ids; play; cp $dir/layer-1/ffn_up.bin $dir/layer-0/ffn_up.bin",
        "wrote an unusable layer-0/ffn_up.bin",
    ),
    "file-of-other-tokens": (
        "echo 'Token ids: [1, 2, 3]'; play",
        "wrote an unusable layer-0/embedding.bin",
    ),
    "never-stops-printing": ("yes 'Token ids'", "printed more than"),
    "ids-without-commas": ("echo 'Token ids: [274 272]'; play", "274 272 is none of the ids from 0 to 511"),
    "ids-with-a-gap": ("echo 'Token ids: [274,,272]'; play", "nothing between two commas is none of the ids"),
    "ids-outside-the-vocabulary": ("echo 'Token ids: [274, 512]'; play", "512 is none of the ids from 0"),
    "ids-counted-otherwise": (
        "echo 'Token ids: [274, 272, 332, 13, 20, 33] (7 tokens)'; play",
        "printed 6 and counted 7",
    ),
    "ids-that-change": (
        "ids; echo 'Token ids: [274, 272, 332, 13, 20, 34]'; play",
        "printed others later on",
    ),
    "ids-of-another-prompt": (
        "echo 'Token ids: [1, 2, 3, 4, 5, 6]'; play",
        "did not run the token ids that it printed: token 0 is given as 1, but its row of `embedding` is "
        "that of 274",
    ),
    "unknown-stage": (
        "ids; play; cp $dir/layer-0/ffn_up.bin $dir/layer-0/ffn_upp.bin",
        "wrote an unusable layer-0/ffn_upp.bin: unknown stage",
    ),
    "stage-twice": (
        "ids; play; cp $dir/layer-0/ffn_up.bin $dir/layer-0/FFN_UP.bin",
        "wrote an unusable layer-0/ffn_up.bin: ffn_up.bin is there twice",
    ),
    "layer-that-is-none": (
        "ids; play; mkdir $dir/layer-7; cp $dir/layer-0/ffn_up.bin $dir/layer-7",
        "wrote layer-7/ffn_up.bin, of a layer that is none",
    ),
    "link-to-elsewhere": (
        "ids; play; ln -sf $recording/layer-0/ffn_up.bin $dir/layer-0/ffn_up.bin",
        "wrote an unusable layer-0/ffn_up.bin: a link leads out",
    ),
    "link-to-nowhere": (
        "ids; play; ln -sf /nowhere $dir/layer-0/ffn_up.bin",
        "wrote an unusable layer-0/ffn_up.bin: is no regular file",
    ),
    "layer-elsewhere": (
        "ids; play; rm -r $dir/layer-0; ln -s $recording/layer-0 $dir/layer-0",
        "a link leads out",
    ),
    "directory-elsewhere": ("ids; ln -s $recording $dir", "put a link where its directory of stage files"),
    "deletes-its-directory": ("ids; play; rm -r $dir", "wrote no stage file"),
}
"""Defect -> what the script does when it is asked to trace, and what has to be said of it."""


def fake_apr(
    place: Path, trace: str = PLAY, *, version: str = "apr 9.9.9 (fa4e000)", imports: str = ""
) -> Path:
    """Write a script to ``place`` that runs ``trace`` for ``apr trace``, ``imports`` for ``apr import``."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(
        f"{_PRELUDE}recording='{RECORDING}'\ncase $verb in\n"
        f"  --version) echo '{version}';;\n  import) {imports or f'cp {MODEL} $made'};;\n  trace) {trace};;\n"
        "esac\n"
    )
    place.chmod(0o755)
    return place


def calls(program: Path) -> list[str]:
    """Return the command lines that a script was run with."""
    log = Path(f"{program}.calls")
    return log.read_text().splitlines() if log.exists() else []


def running_in(folder: Path) -> list[str]:
    """Return the command lines of this machine's processes that name ``folder``, but for our own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if str(folder) in line:
                found.append(line)
    return found
