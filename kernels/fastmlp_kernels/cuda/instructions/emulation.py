"""The warp's instructions in Numba's simulator, which has none: the functions of `intrinsics`.

The simulator runs a Python thread for each CUDA thread, one block at a time. The 32 threads of a
warp meet: each leaves what it holds, the last to come computes for all in NumPy, each takes what it
receives. A lane that stays away, or comes to another instruction, is an error and not a hang.
"""

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fastmlp_kernels.cuda.instructions import fragments
from fastmlp_kernels.cuda.instructions.fragments import LANES, MATRIX_BYTES, MATRIX_ROWS

# Seconds to wait for the other lanes: work between two instructions is milliseconds.
PATIENCE = 20.0
# Seconds between two looks at whether a lane has ended.
GLANCE = 0.2
# Seconds that a Python thread may keep the interpreter while another waits for it. The simulator
# polls its threads without a pause, and with Python's 5 ms each of 32 lanes would wait for that.
SWITCH_INTERVAL = 2e-5

TF32_DROPPED = np.uint32(0x1FFF)
NAN_BITS = np.uint32(0x7FFFFFFF)


def bfloat16_bits(values: Any) -> np.ndarray:
    """Return float32 numbers rounded to nearest even, as the high halves of their bits."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(values), NAN_BITS >> 16, rounded).astype(np.uint16)


def bfloat16_values(bits: Any) -> np.ndarray:
    """Return the numbers, exact in float32, whose high halves are given."""
    return (np.asarray(bits, np.uint32) << 16).view(np.float32)


def tf32_values(values: Any) -> np.ndarray:
    """Return float32 numbers rounded to ten bits of fraction, ties away from zero."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & ~TF32_DROPPED
    return np.where(np.isnan(values), NAN_BITS, rounded).astype(np.uint32).view(np.float32)


@functools.cache
def _places(row: Callable, column: Callable, registers: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = [[(row(t, r), column(t, r)) for r in range(registers)] for t in range(LANES)]
    places = np.array(pairs)
    return places[:, :, 0], places[:, :, 1]


def _gather_pairs(registers: np.ndarray, rows, columns, shape, along) -> np.ndarray:
    matrix = np.zeros(shape, np.float32)
    for half in range(2):
        values = bfloat16_values(registers >> (16 * half) & 0xFFFF)
        matrix[rows + half * along[0], columns + half * along[1]] = values
    return matrix


def warp_bfloat16(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the sums of mma.m16n8k16 for the registers of 32 lanes (uint32, uint32, float32)."""
    rows, columns = _places(fragments.left_row, fragments.left_column_bfloat16, 4)
    A = _gather_pairs(a, rows, columns, (16, 16), (0, 1))
    rows, columns = _places(fragments.right_row_bfloat16, fragments.right_column, 2)
    B = _gather_pairs(b, rows, columns, (16, 8), (1, 0))
    return _add_product(A, B, c)


def warp_tf32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the sums of mma.m16n8k8 for the registers of 32 lanes (uint32, uint32, float32)."""
    for bits in (a, b):
        inexact = (bits & TF32_DROPPED != 0) & ~np.isnan(bits.view(np.float32))
        if inexact.any():
            raise ValueError("mma_tf32: got an operand that is no tf32, wanted to_tf32 of it")
    A, B = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32)
    A[_places(fragments.left_row, fragments.left_column_tf32, 4)] = a.view(np.float32)
    B[_places(fragments.right_row_tf32, fragments.right_column, 2)] = b.view(np.float32)
    return _add_product(A, B, c)


def _add_product(A: np.ndarray, B: np.ndarray, c: np.ndarray) -> np.ndarray:
    C = np.zeros((16, 8), np.float32)
    places = _places(fragments.sum_row, fragments.sum_column, 4)
    C[places] = c
    with np.errstate(all="ignore"):
        return (A @ B + C)[places]


def warp_matrices(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """Return four registers for each of 32 lanes.

    Parameters
    ----------
    rows : uint16[32, 8]
        The half-words at the address that each lane gave.
    transposed : bool
    """
    lanes = np.arange(LANES)
    row, column = fragments.matrix_row(lanes), fragments.matrix_column(lanes)
    matrices = rows.reshape(4, MATRIX_ROWS, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    low, high = matrices[:, row, column], matrices[:, row, column + 1]
    return (low.astype(np.uint32) | high.astype(np.uint32) << 16).T


class Meeting:
    """Where the lanes of one warp meet, again and again."""

    def __init__(self) -> None:
        self.threads: list = [None] * LANES
        self.left: list = [None] * LANES
        self.received: Any = None
        self.failure: str | None = None
        self._rounds = 0
        self._door = threading.Condition()
        sys.setswitchinterval(SWITCH_INTERVAL)

    def exchange(self, lane: int, name: str, held: Any, work: Callable) -> Any:
        """Leave `held`, and return this lane's row of ``work(what all lanes left)``."""
        with self._door:
            self.threads[lane], self.left[lane] = threading.current_thread(), (name, held)
            if all(each is not None for each in self.left):
                self._compute(work)
            else:
                self._wait(name)
            if self.failure:
                raise RuntimeError(self.failure)
            return self.received[lane]

    def _wait(self, name: str) -> None:
        mine, waited = self._rounds, 0.0
        while self._rounds == mine and not self.failure:
            if self._door.wait(GLANCE):
                continue
            waited += GLANCE
            # The simulator may overlook that a thread has failed, and then waits for the others.
            ended = [each for each in self.threads if each is not None and not each.is_alive()]
            for each in ended:
                why = each.exception[0] if each.exception else "it returned"
                self._fail(f"{name}: lane {each.thread_id % LANES} ended: {why}")
            if waited >= PATIENCE:
                came = sum(each is not None for each in self.left)
                self._fail(f"{name}: got {came} lanes of a warp, wanted {LANES}")

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self._door.notify_all()

    def _compute(self, work: Callable) -> None:
        names = {name for name, _ in self.left}
        try:
            if len(names) > 1:
                raise ValueError(f"{min(names)}: got lanes in {sorted(names)}, wanted all in one")
            self.received = work([held for _, held in self.left])
        except Exception as error:
            self.failure = str(error)
        self.left = [None] * LANES
        self._rounds += 1
        self._door.notify_all()


_meetings: Any = weakref.WeakKeyDictionary()
_founding = threading.Lock()


def _exchange(name: str, held: Any, work: Callable) -> Any:
    thread: Any = threading.current_thread()
    block = thread._manager
    if np.prod(block._block_dim) % LANES:
        raise ValueError(f"{name}: got blocks of {block._block_dim}, wanted whole warps")
    warp, lane = divmod(thread.thread_id, LANES)
    with _founding:
        warps = _meetings.setdefault(block, {})
        meeting = warps[warp] if warp in warps else warps.setdefault(warp, Meeting())
    return meeting.exchange(lane, name, held, work)


def _multiply(name: str, warp: Callable, a: Any, b: Any, c: Any) -> tuple:
    def work(held):
        left, right, sums = zip(*held, strict=True)
        return warp(np.array(left), np.array(right), np.array(sums))

    held = (np.uint32(a), np.uint32(b), np.float32(c))
    return tuple(_exchange(name, held, work))


def mma_bfloat16(a, b, c):
    """Emulate the intrinsic of this name."""
    return _multiply("mma_bfloat16", warp_bfloat16, a, b, c)


def mma_tf32(a, b, c):
    """Emulate the intrinsic of this name."""
    return _multiply("mma_tf32", warp_tf32, a, b, c)


def _chunk(name: str, array: Any, place: int) -> np.ndarray:
    """Return the 16 bytes at an element of an array: aligned and inside, or an error."""
    count = MATRIX_BYTES // array.dtype.itemsize
    if place % count or not 0 <= place <= len(array) - count:
        raise ValueError(
            f"{name}: got place {place} of {len(array)}, wanted {count} elements inside, aligned"
        )
    return np.asarray(array[int(place) : int(place) + count])


def _load_matrix(name: str, array: Any, place: int, transposed: bool) -> tuple:
    # Copied only once all lanes are there, as the machine reads at one instant.
    chunk = _chunk(name, array, place)
    return tuple(
        _exchange(
            name, chunk, lambda held: warp_matrices(np.array(held).view(np.uint16), transposed)
        )
    )


def load_matrix_x4(array, place):
    """Emulate the intrinsic of this name."""
    return _load_matrix("load_matrix_x4", array, place, False)


def load_matrix_x4_transposed(array, place):
    """Emulate the intrinsic of this name."""
    return _load_matrix("load_matrix_x4_transposed", array, place, True)


class Copies(threading.local):
    """The copies that a thread has begun: nothing arrives before it is waited for."""

    def __init__(self) -> None:
        self.begun: list = []
        self.groups: list = []


_copies = Copies()


def copy_async_16(destination, destination_place, source, source_place):
    """Emulate the intrinsic of this name."""
    name = "copy_async_16"
    target = _chunk(name, destination, destination_place)
    _copies.begun.append((target, _chunk(name, source, source_place)))


def copy_async_commit():
    """Emulate the intrinsic of this name."""
    _copies.groups.append(_copies.begun)
    _copies.begun = []


def copy_async_wait(pending):
    """Emulate the intrinsic of this name."""
    arrived = len(_copies.groups) - pending
    for target, chunk in (pair for group in _copies.groups[: max(arrived, 0)] for pair in group):
        target[:] = chunk
    _copies.groups = _copies.groups[max(arrived, 0) :]


def to_bfloat16(value):
    """Emulate the intrinsic of this name."""
    return bfloat16_bits(np.float32(value))[()]


def to_bfloat16_pair(low, high):
    """Emulate the intrinsic of this name."""
    return np.uint32(to_bfloat16(low)) | np.uint32(to_bfloat16(high)) << np.uint32(16)


def from_bfloat16(bits):
    """Emulate the intrinsic of this name."""
    return bfloat16_values(bits)[()]


def to_tf32(value):
    """Emulate the intrinsic of this name."""
    return tf32_values(np.float32(value))[()]


def load_bits(array, place):
    """Emulate the intrinsic of this name."""
    if not 0 <= place < len(array):
        raise ValueError(f"load_bits: got place {place} of {len(array)}, wanted one inside")
    return np.float32(array[place]).view(np.uint32)


class Record:
    """A record of an array of int64, whose fields are read by name."""

    def __init__(self, words: Any, dtype: np.dtype, place: int) -> None:
        self.words, self.fields, self.place = words, dtype.fields, place

    def __getattr__(self, name: str) -> Any:
        """Return a field."""
        kind, offset = self.fields[name]
        return self.words[self.place + offset // kind.itemsize]


def record_at(words, dtype, place, narrow):
    """Emulate the intrinsic of this name."""
    return Record(words, dtype, place)
