"""Try one kernel of the port alone, on what `apr-falsify capture --export-replay attention` wrote.

python docs/examples/one_kernel.py KERNEL_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy_port import heads, share

kernel = Path(sys.argv[1])
probs = np.load(kernel / "inputs" / "attn_softmax.npy")
v = heads(np.load(kernel / "inputs" / "qkv_bias.npy")[:, -64:], 2)
expected = np.load(kernel / "expected.npy")
for fixed in (False, True):
    mixed = (probs @ share(v, 4, fixed)).transpose(1, 0, 2).reshape(expected.shape)
    far = np.linalg.norm(mixed - expected) / np.linalg.norm(expected)
    print("repeat:" if fixed else "tile:  ", "right" if far < 1e-6 else f"wrong, relative error {far:.2f}")
