"""Digests of files, and the file system's own word on whether one may have changed since."""

from __future__ import annotations

import hashlib
import os
import time

Stamp = tuple[int, int, int, int]
"""Size, times of change of content and of state in nanoseconds, and number of a file."""

_SETTLED = 1_000_000_000
"""Nanoseconds after a change before a stamp is trusted: two contents may share one tick of the clock."""


def digest(data: bytes) -> bytes:
    """Identity of a content."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Stamps:
    """Digests of files, read again only where the file system says that one may have changed.

    Args:
        known: path -> the stamp a file had, and the digest of its content.

    """

    def __init__(self, known: dict[str, tuple[Stamp, bytes]] | None = None) -> None:
        self.known = known if known is not None else {}
        self.changed = False
        self._now: dict[str, bytes] = {}

    def of(self, path: str) -> bytes:
        """Digest of a regular file; empty where there is none, ``/`` for a folder."""
        found = self._now.get(path)
        if found is None:
            found = self._now[path] = self._of(path)
        return found

    def _of(self, path: str) -> bytes:
        try:
            stat = os.stat(path)
            if not stat.st_mode & 0o100000:
                return b"/" if stat.st_mode & 0o040000 else b""
            stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            known = self.known.get(path)
            if known and known[0] == stamp:
                return known[1]
            with open(path, "rb", buffering=0) as file:
                found = digest(file.read())
        except (OSError, ValueError):
            return b""
        if time.time_ns() - max(stamp[1], stamp[2]) > _SETTLED:
            self.known[path] = (stamp, found)
            self.changed = True
        return found
