"""The process of one step: what `steps.run_step` starts.

Apart from `steps`, since a module that is run has classes of its own: its `Skipped` would not be
the one that a step raises.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu.steps import Context, Skipped, describe, missing_gpu, read


def main(arguments: list[str]) -> int:
    """Run one step in this process."""
    module, needs_gpu, options, record, file, seconds = arguments
    before = read(Path(record)) or {"steps": {}}
    context = Context(
        json.loads(options), before["steps"], time.monotonic() + float(seconds), Path(file)
    )
    context.options["record"] = record
    try:
        reason = missing_gpu() if int(needs_gpu) else None
        if reason is not None:
            raise Skipped(reason)
        importlib.import_module(module).run(context)
    except Skipped as reason:
        context.save("skipped", str(reason))
        return 0
    except Exception as error:
        traceback.print_exc()
        context.save("failed", describe(error))
        return 1
    context.save("failed" if context.failures else "done", "; ".join(context.failures)[:400])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
