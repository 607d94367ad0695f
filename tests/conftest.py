"""What holds for all tests."""

from __future__ import annotations

import os

import hypothesis

# Before anything imports torch. The workers of pytest-xdist are as many as the processors: with more threads each, they would
# wait for one another, which can take six times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time, so that a failure is the change's; how long one takes depends on the machine.
hypothesis.settings.register_profile("vitbench", max_examples=12, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("vitbench")
