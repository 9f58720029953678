"""The command ``fastmlp``: train and predict from files, compile ahead, measure this machine."""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastmlp.atomic_writing import write_atomically
from fastmlp.device.machine import detect
from fastmlp.device.machine_file import CONSTANTS, store_constants
from fastmlp.dispatch.calibration import calibrate, calibrate_gpu
from fastmlp.dispatch.warming import warmup
from fastmlp.errors import FastMLPError, NonFiniteTrainingError
from fastmlp.version import VERSION
from fastmlp_kernels.problem import DTYPES

# Measurements until one is undisturbed, and the pause between two.
ATTEMPTS, PAUSE_SECONDS = 3, 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 2 for what is wrong with it or with its files."""
    chosen = parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except NonFiniteTrainingError as error:
        say_why(error)
        return 1
    except (FastMLPError, OSError) as error:
        say_why(error)
        return 2
    except KeyboardInterrupt:
        return 130


def say_why(error: Exception) -> None:
    """Say what is wrong in one line, unless another rank does."""
    if "said_by" in vars(error):
        return
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    say(f"fastmlp: {error}{notes}")


def parser() -> argparse.ArgumentParser:
    """Return what reads a command line; each command has its function, `run`."""
    whole = argparse.ArgumentParser(prog="fastmlp", description=__doc__)
    whole.add_argument("--version", action="version", version=f"fastmlp {VERSION}")
    commands = whole.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], says: str) -> Any:
        command = commands.add_parser(name, help=says, description=says)
        command.set_defaults(run=run)
        return command

    command = add("train", run_train, "train as a file of settings (TOML) says, and save the model")
    command.add_argument("settings", help="the file: see the guide, “From the command line”")
    command.add_argument("--mpi", action="store_true", help="train on all ranks: mpiexec -n 4 ...")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command = add("predict", run_predict, "write what a model predicts, as CSV")
    command.add_argument("model", help="what `train` or `model.save` wrote")
    command.add_argument("rows", help="a file of CSV, Parquet or NPZ")
    command.add_argument("--out", help="where to write; by default to standard output")
    command.add_argument("--delimiter", default=",", help="between the cells of a CSV file")
    add("info", run_info, "show what a file of a model holds").add_argument("model")
    command = add("warmup", run_warmup, "compile all kernels ahead, so that no first fit has to")
    command.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    measure = (
        "measure the speed of this machine, by which kernels and threads are chosen, and keep it "
        "in the user's configuration folder"
    )
    add("calibrate", run_calibrate, measure)
    return whole


def run_train(chosen: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    from fastmlp.command.training import is_first, train

    _, history = train(chosen.settings, chosen.mpi, False if chosen.quiet else None)
    if is_first(chosen.mpi):
        say(str(history))
    return 0


def run_predict(chosen: argparse.Namespace) -> int:
    """Predict to a file, which is there whole or not at all, or to standard output."""
    from fastmlp.command.predicting import predict

    text = io.StringIO()
    predict(chosen.model, chosen.rows, text, chosen.delimiter)
    if chosen.out is None:
        sys.stdout.write(text.getvalue())
    else:
        write_atomically(chosen.out, text.getvalue().encode())
    return 0


def run_info(chosen: argparse.Namespace) -> int:
    """Describe a file."""
    from fastmlp.command.predicting import describe

    sys.stdout.write(f"{describe(chosen.model)}\n")
    return 0


def run_warmup(chosen: argparse.Namespace) -> int:
    """Compile ahead."""
    for dtype in chosen.dtype:
        say(f"{dtype}: compiled or loaded in {warmup(dtype):.1f} s")
    return 0


def run_calibrate(chosen: argparse.Namespace) -> int:
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
