"""Make the screenshot of ``docs/report.md``: the page of the recording whose K bias was zeroed.

    python scripts/picture_report.py

Needs chromium and chromedriver on PATH, and the extras ``report`` and ``test``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.acceptance.browser import open_browser  # noqa: E402 - found by the line above
from tests.acceptance.programs import APR_TOKENS, RECORDINGS, TINY, run  # noqa: E402 - the same

PICTURE = ROOT / "docs" / "figures" / "report.png"
WIDTH, HEIGHT = 1000, 1960
MOST_BYTES = 150_000
COLOURS = 160
"""Of the palette: letters keep their edges, and the file a third of its size."""


def main() -> None:
    """Bisect, show the page, take its picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = f"recorded:{(RECORDINGS / 'k-bias-zero').relative_to(ROOT)}"
        oracle = TINY.relative_to(ROOT)
        told = run(
            *("bisect", "--oracle", oracle, "--subject", subject),
            *("--tokens", APR_TOKENS, "--out", folder / "run"),
        )
        assert told.code == 1, told
        with open_browser(folder / "profile") as browser:
            browser.show(folder / "run" / "report.html", width=WIDTH, height=HEIGHT, scheme="light")
            browser.screenshot(PICTURE)
    Image.open(PICTURE).convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    assert size <= MOST_BYTES, f"{size} bytes, more than {MOST_BYTES}"
    print(f"{PICTURE}: {size} bytes")


if __name__ == "__main__":
    main()
