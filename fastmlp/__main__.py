"""The command ``fastmlp``: compile ahead, and measure the constants of this machine."""

import argparse
import sys
import time
from collections.abc import Sequence

from fastmlp.device.machine import detect
from fastmlp.device.machine_file import CONSTANTS, store_constants
from fastmlp.dispatch.calibration import calibrate, calibrate_gpu
from fastmlp.dispatch.warming import warmup
from fastmlp_kernels.problem import DTYPES

# Measurements until one is undisturbed, and the pause between two.
ATTEMPTS, PAUSE_SECONDS = 3, 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="fastmlp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ahead = "compile all kernels ahead, so that no first fit has to"
    command = commands.add_parser("warmup", help=ahead, description=ahead)
    command.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    measure = (
        "measure the speed of this machine, by which kernels and threads are chosen, and keep it "
        "in the user's configuration folder"
    )
    commands.add_parser("calibrate", help=measure, description=measure)
    chosen = parser.parse_args(arguments)
    return run_warmup(chosen.dtype) if chosen.command == "warmup" else run_calibrate()


def run_warmup(dtypes: Sequence[str]) -> int:
    """Compile ahead."""
    for dtype in dtypes:
        say(f"{dtype}: compiled or loaded in {warmup(dtype):.1f} s")
    return 0


def run_calibrate() -> int:
    """Measure, show and store."""
    machine = detect()
    warmup("float32")
    result = calibrate(machine)
    for _ in range(ATTEMPTS - 1):
        if not result.disturbed:
            break
        say(f"other programs took {1 - result.share:.0%} of the processors: measuring again")
        time.sleep(PAUSE_SECONDS)
        result = calibrate(machine)
    if result.disturbed:
        say(
            f"nothing was stored: other programs took {1 - result.share:.0%} of the processors "
            f"while they were measured, {ATTEMPTS} times. The constants would be those of a slower "
            "machine. End them, or wait for them, and run it again"
        )
        return 1
    gpu = calibrate_gpu(machine)
    for name in CONSTANTS:
        if name not in result.constants:
            say(f"{name:22} {getattr(machine, name):8.3g}  not measured: it takes two cores")
        elif name in result.raised:
            say(f"{name:22} {result.constants[name]:8.3g}  the limit: too small to be measured")
        else:
            say(f"{name:22} {result.constants[name]:8.3g}")
    for name, value in gpu.items():
        say(f"{name:22} {value:8.3g}  {machine.gpu}")
    if machine.cuda_missing:
        say(f"no GPU was measured: {machine.cuda_missing}")
    try:
        path = store_constants(result.constants, machine.gpu, gpu)
    except (OSError, RuntimeError) as error:
        say(f"the constants could not be stored: {error}")
        return 1
    say(f"stored in {path}")
    return 0


def say(line: str) -> None:
    """Print a line for the person at the terminal; standard output is left to programs."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
