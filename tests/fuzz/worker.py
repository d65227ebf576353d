"""One process of a campaign: it reads some inputs of one reader and prints a tally.

``python -m tests.fuzz.worker MODULE READER SEED START STOP PLACE``: the readers are those of ``MODULE``, and
the file ``PLACE`` says at any time which input it is at.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from tests.fuzz.chunk import limit_memory, noting, read_some


def main() -> None:
    module, reader, seed, start, stop, place = sys.argv[1:]
    rows = importlib.import_module(module).READERS
    limit_memory()
    tally = read_some(reader, int(seed), range(int(start), int(stop)), noting(Path(place)), rows)
    print(json.dumps(tally.to_json()))


if __name__ == "__main__":
    main()
