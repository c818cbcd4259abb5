"""How much memory this process takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["rss"]

_STATM = Path("/proc/self/statm")


def rss() -> int:
    """Return the resident set size in bytes; where the system does not tell, the largest it has ever been."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024
