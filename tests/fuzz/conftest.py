"""The box and the makers of whole files are those of tests/storage and tests/study."""

from __future__ import annotations

import sys
from pathlib import Path

for name in ("storage", "study"):
    sys.path.append(str(Path(__file__).parents[1] / name))
