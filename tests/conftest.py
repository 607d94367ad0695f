"""What holds for all tests."""

from __future__ import annotations

import os

# Before anything imports torch. The workers of pytest-xdist are as many as the processors: with more threads each, they would
# wait for one another, which can take six times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
