"""The shapes of what a program is given: checked in one place, before any kernel runs.

`cpu.fused` does the same in compiled code, where an array's address is taken: see
`cpu.caller_arrays`.
"""

from typing import Any

from fastmlp_kernels.problem import CONTROL_WORDS, Problem


def check_shape(name: str, array: Any, wanted: tuple[int, ...], problem: Problem) -> None:
    """Raise a ValueError if an array has another shape than the problem's."""
    if tuple(array.shape) != wanted:
        raise ValueError(
            f"a kernel was given {name} of shape {tuple(array.shape)}, wanted {wanted}, "
            f"for {problem}"
        )


def check_epoch(
    problem: Problem,
    parameters: Any,
    state: Any,
    X: Any,
    y: Any,
    order: Any,
    hyper: Any,
    losses: Any,
    control: Any,
    factors: Any = None,
    squares: Any = None,
) -> None:
    """Check the arguments of `Program.epoch`; each but X and y has an axis of several networks.

    Raises
    ------
    ValueError
    """
    rows, batches = problem.rows, problem.batches
    members = () if problem.members == 1 else (problem.members,)
    check_data(problem, X, y)
    for name, array, wanted in (
        ("parameters", parameters, (problem.parameter_count,)),
        ("state", state, (problem.slots, problem.parameter_count)),
        ("order", order, (rows,)),
        ("hyper", hyper, (batches, problem.hyper_columns)),
        ("losses", losses, (batches,)),
        ("control", control, (CONTROL_WORDS,)),
        ("factors", factors, (rows,)),
        ("squares", squares, (batches,)),
    ):
        if array is not None:
            check_shape(name, array, members + wanted, problem)


def check_data(problem: Problem, X: Any, y: Any) -> None:
    """Check inputs and targets of as many rows.

    Raises
    ------
    ValueError
    """
    rows = X.shape[0]
    check_shape("X", X, (rows, problem.sizes[0]), problem)
    check_shape("y", y, (rows, problem.target_columns), problem)
