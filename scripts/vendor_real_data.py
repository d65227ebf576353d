"""Copy what the tests need of others' recordings into the repository, and write down its digests.

    python scripts/vendor_real_data.py FOLDER

FOLDER is laid out as tests/data/README.md says. Run it again when a recording is replaced; the
diff of tests/data/SHA256SUMS then shows what changed.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS_DATA = ROOT / "tests" / "data"
DRIFT = (
    "d05-other-test-in-crate-wrong-module",
    "d06-changelog-cites-unregistered-falsifier",
    "d09b-right-binary-function-in-other-binary",
    "d10-phantom-binding",
    "d11-test-harness-prose-with-mutated-name",
    "d12-falsification_test-inline-code",
    "d14c-test_locations-drift",
    "d19-verdict-pass-no-evidence",
    "d21-verdict-vs-discharge-status",
    "d26-test-of-comments-only",
    "d28-metadata-below-falsifiers-summary-zero",
    "d32-kani-id-and-foreign-obligation",
    "s01-macro-generated-test",
    "s05-workspace-dash-underscore-toolchain",
    "w01a-orphan-rs-file-cargo",
    "w06-test-asserts-nothing",
    "w11-nextest-idiom-filter",
    "w13-feature-gated-without-feature",
    "w15-module-level-skip",
    "w16-second-command",
    "w18-pytest-k-gone",
    "w21-cfg-quarantine",
    "w25-python-same-name-twice",
    "w30-functional-no-bundle",
)
VENDORED = {
    "apr-tiny-qwen2/base": TESTS_DATA,
    "apr-tiny-qwen2/k-bias-zero": TESTS_DATA,
    "apr-tiny-qwen2/norm-scaled": TESTS_DATA,
    "apr-tiny-qwen2/base-q4k": TESTS_DATA,
    "apr-tiny-qwen2/base-q4k.apr": TESTS_DATA,
    "apr-tiny-qwen2/base-q4k.gguf": TESTS_DATA,
    "apr-smollm2-135m": TESTS_DATA,
    "llama-cpp-smollm2-135m": TESTS_DATA,
    "apr-output": TESTS_DATA,
    **{f"drift/{name}": TESTS_DATA for name in DRIFT},
    "tiny-qwen2": ROOT / "src" / "apr_falsify" / "data",
}

RECORDED_HERE = dict.fromkeys(("apr-tiny-llama-hf", "apr-edges", "quantised"), TESTS_DATA)
"""Recordings that are in no such folder; tests/data/README.md says how each was made."""


def vendor(source: Path) -> None:
    """Copy what ``VENDORED`` names from ``source``."""
    for name, folder in VENDORED.items():
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in [source / name, *sorted((source / name).rglob("*"))]:
            place = target / path.relative_to(source / name)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                shutil.copyfile(path, place)  # contents alone: the source may be read-only


def write_digests() -> None:
    """Write the digest of every vendored file."""
    lines = []
    for name, folder in (VENDORED | RECORDED_HERE).items():
        files = [folder / name, *sorted((folder / name).rglob("*"))]
        for path in files:
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                lines.append(f"{digest}  {path.relative_to(ROOT)}")
    (TESTS_DATA / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Vendor from the folder on the command line."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: {sys.argv[0]} FOLDER (the folder of recordings)")
    vendor(Path(sys.argv[1]))
    write_digests()
    print(f"vendored {len(VENDORED)} recordings; digests in {TESTS_DATA / 'SHA256SUMS'}")


if __name__ == "__main__":
    main()
