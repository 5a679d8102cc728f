"""Calls one function of a benchmark in this process, which is fresh, and prints what it returns as JSON."""

from __future__ import annotations

import importlib
import json
import sys

from tools import peak_mb


def main() -> None:
    call = json.loads(sys.argv[1])
    function = getattr(importlib.import_module(call["module"]), call["function"])
    result = function(**call["arguments"])
    print(json.dumps({**result, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
