"""Runs all benchmarks, prints their tables, and with --json FILE writes the figures.

Each benchmark can also be run alone, with the same options.
"""

from __future__ import annotations

import accuracy
import calibration
import graph_work
import latency
import memory
import tools

if __name__ == "__main__":
    tools.main([m.run for m in (accuracy, calibration, memory, latency, graph_work)], __doc__)
