"""`predict`: any layout of X without a copy of it, `out=`, several threads, and what is refused."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastmlp import MLP, DomainError, DTypeError, Ensemble, ShapeError
from fastmlp.data import inputs as inputs_module

SIZES = [7, 40, 3]
ROWS = 500
DTYPES = ("float32", "float64")
MIB = 2**20


def rows_of(dtype, rows=ROWS, columns=SIZES[0]):
    """Return rows whose numbers every dtype holds exactly."""
    return np.random.default_rng(0).integers(-8, 9, (rows, columns)).astype(dtype)


def unaligned(X):
    memory = np.empty(X.nbytes + 1, np.uint8)
    found = np.frombuffer(memory.data, X.dtype, X.size, 1).reshape(X.shape)
    found[...] = X
    return found


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "every other row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "every other column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "backwards": lambda X: X[::-1].copy()[::-1],
    "broadcast": lambda X: np.broadcast_to(X[:1], X.shape),
    "read-only": read_only,
    "unaligned": unaligned,
    "big-endian": lambda X: X.astype(X.dtype.newbyteorder(">")),
    "float16": lambda X: X.astype("float16"),
    "float32": lambda X: X.astype("float32"),
    "float64": lambda X: X.astype("float64"),
    "longdouble": lambda X: X.astype("longdouble"),
    "int8": lambda X: X.astype("int8"),
    "int64": lambda X: X.astype("int64"),
    "bool": lambda X: X > 0,
    "lists": lambda X: X.tolist(),
    "memory map": lambda X: X.view(np.memmap),
}


@pytest.fixture(params=[None, 64], ids=["one block", "blocks of two rows"])
def block_bytes(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(inputs_module, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_predicts_the_same_bits(layout, dtype, block_bytes):
    given = LAYOUTS[layout](rows_of(dtype))
    straight = np.array(given, dtype=dtype)
    for model in (MLP(SIZES, dtype=dtype), Ensemble(SIZES, 3, dtype=dtype)):
        found = model.predict(given)
        assert found.dtype == dtype and found.tobytes() == model.predict(straight).tobytes()
        out = np.empty_like(found)
        assert model.predict(given, out=out) is out and out.tobytes() == found.tobytes()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_are_read_a_block_at_a_time(library, block_bytes):
    tables = pytest.importorskip(library)
    X = rows_of("float64")
    columns = {f"c{k}": X[:, k] for k in range(X.shape[1])}
    columns["c1"], columns["c2"] = columns["c1"].astype("int32"), columns["c2"] > 0
    X[:, 2] = X[:, 2] > 0
    table, model = tables.DataFrame(columns), MLP(SIZES)
    expected = model.predict(X.astype("float32"))
    assert model.predict(table).tobytes() == expected.tobytes()
    assert model.predict(table[3:4]).tobytes() == expected[3:4].tobytes()
    with pytest.raises(ShapeError, match=r"X: got shape \(500, 6\), wanted \(rows, 7\)"):
        model.predict(table[[f"c{k}" for k in range(6)]])
    words = columns | {"c0": np.array(["word"] * ROWS)}
    with pytest.raises(DTypeError, match="X: got column 'c0' of text"):
        model.predict(tables.DataFrame(words))


def test_a_table_of_another_index_is_read_by_position(block_bytes):
    pandas = pytest.importorskip("pandas")
    X = rows_of("float64")
    table, model = pandas.DataFrame(X, index=np.arange(ROWS)[::-1] / 2), MLP(SIZES)
    assert model.predict(table).tobytes() == model.predict(X).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_number_is_named_by_its_row_and_column(value, dtype, block_bytes):
    model = MLP(SIZES, dtype=dtype)
    for layout in ("Fortran", "float64", "every other row", "read-only", "big-endian"):
        for row, column in ((0, 0), (250, 3), (ROWS - 1, 6)):
            X = rows_of(dtype)
            X[row, column] = value
            given = LAYOUTS[layout](X)
            for call in (
                lambda: model.predict(given),  # noqa: B023
                lambda: model.predict(given, threads=2),  # noqa: B023
                lambda: model.predict(given, out=np.empty((ROWS, 3), dtype)),  # noqa: B023
                lambda: model.evaluate(given, np.zeros((ROWS, 3))),  # noqa: B023
            ):
                with pytest.raises(DomainError) as error:
                    call()
                wanted = f"X: got 1 bad value, the first {value} at index ({row}, {column})"
                assert str(error.value).startswith(wanted)


def test_a_number_that_the_dtype_cannot_hold_is_refused(block_bytes):
    X = rows_of("float64")
    X[321, 5] = 1e300
    with pytest.raises(DomainError, match=r"1e\+300 at index \(321, 5\); wanted numbers that"):
        MLP(SIZES).predict(X)


def vector_model(kind):
    model = Ensemble([7, 5, 1], 3) if kind == "ensemble" else MLP([7, 5, 1])
    model.fit(rows_of("float32"), np.zeros(ROWS), epochs=1)
    return model


MODELS = {
    "MLP": (lambda: MLP(SIZES), (ROWS, 3)),
    "vector": (lambda: vector_model("MLP"), (ROWS,)),
    "ensemble": (lambda: Ensemble(SIZES, 3), (3, ROWS, 3)),
    "ensemble of one": (lambda: Ensemble(SIZES, 1), (1, ROWS, 3)),
    "ensemble of vectors": (lambda: vector_model("ensemble"), (3, ROWS)),
    "reference": (lambda: MLP(SIZES), (ROWS, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_out_takes_the_predictions(name):
    make, shape = MODELS[name]
    model, X = make(), rows_of("float32")
    place = {"kernel": "reference"} if name == "reference" else {}
    expected, out = model.predict(X, **place), np.full(shape, np.nan, np.float32)
    assert model.predict(X, out=out, **place) is out
    assert out.shape == expected.shape and out.tobytes() == expected.tobytes()
    # A part of a larger array, if its rows follow each other.
    large = np.zeros((shape[0] + 2, *shape[1:]), np.float32)
    model.predict(X, out=large[1:-1], **place)
    assert large[1:-1].tobytes() == expected.tobytes() and not large[[0, -1]].any()
    none = np.empty([size if size != ROWS else 0 for size in shape], np.float32)
    assert model.predict(X[:0], out=none, **place) is none
    assert model.predict(X[:0], **place).shape == none.shape


def frozen():
    out = np.zeros((ROWS, 3), np.float32)
    out.flags.writeable = False
    return out


MISUSES = {
    "a list": (lambda: [[0.0] * 3] * ROWS, DTypeError, "out: got list, wanted an array of shape"),
    "a masked array": (lambda: np.ma.zeros((ROWS, 3), "float32"), DTypeError, "MaskedArray"),
    "float64": (lambda: np.zeros((ROWS, 3)), DTypeError, "out: got dtype float64, wanted float32"),
    "big-endian": (lambda: np.zeros((ROWS, 3), ">f4"), DTypeError, "out: got dtype >f4"),
    "fewer rows": (lambda: np.zeros((ROWS - 1, 3), "f4"), ShapeError, r"out: got shape \(499, 3\)"),
    "a vector": (lambda: np.zeros(ROWS * 3, "f4"), ShapeError, r"out: got shape \(1500,\)"),
    "Fortran": (lambda: np.zeros((3, ROWS), "f4").T, DomainError, "out: .* without gaps"),
    "gaps": (lambda: np.zeros((ROWS, 6), "f4")[:, ::2], DomainError, "out: .* without gaps"),
    "unaligned": (lambda: unaligned(np.zeros((ROWS, 3), "f4")), DomainError, "out: .* gaps"),
    "read-only": (frozen, DomainError, "out: got a read-only array"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_another_out_is_refused_before_anything_is_written(misuse):
    make, error, message = MISUSES[misuse]
    out = make()
    before = np.array(out)
    with pytest.raises(error, match=message):
        MLP(SIZES).predict(rows_of("float32"), out=out)
    assert np.array_equal(before, np.array(out))


@pytest.mark.parametrize("layout", ["straight", "Fortran", "every other row", "float64"])
def test_out_may_not_lie_in_x(layout):
    model = MLP([3, 4, 3], dtype="float64" if layout == "float64" else "float32")
    memory = np.ones(8 * ROWS * 3, model.dtype)
    if layout == "every other row":
        X = memory[: 2 * ROWS * 3].reshape(2 * ROWS, 3)[::2]
    else:
        order = "F" if layout == "Fortran" else "C"
        X = memory[: ROWS * 3].reshape(ROWS, 3, order=order)
    for start in (0, 1, ROWS * 3 - 1):
        out = memory[start : start + ROWS * 3].reshape(ROWS, 3)
        with pytest.raises(DomainError, match="out: got memory that X lies in too"):
            model.predict(X, out=out)
    assert (memory == 1).all()
    model.predict(X, out=memory[6 * ROWS * 3 : 7 * ROWS * 3].reshape(ROWS, 3))


def test_out_may_not_lie_in_a_table():
    pandas = pytest.importorskip("pandas")
    memory = np.ones((ROWS, 3), np.float32)
    table = pandas.DataFrame(memory, copy=False)
    if np.may_share_memory(table.to_numpy(), memory):
        with pytest.raises(DomainError, match="out: got memory that X lies in too"):
            MLP([3, 4, 3]).predict(table, out=memory)


def test_out_may_not_lie_in_the_model():
    for model in (MLP([3, 3]), Ensemble([3, 3], 2)):
        held = model.parameters.reshape(-1)
        X, shape = np.ones((1, 3), np.float32), np.shape(model.predict(np.ones((1, 3))))
        out = held[: int(np.prod(shape))].reshape(shape)
        before = held.copy()
        with pytest.raises(DomainError, match="out: got memory of the model's parameters"):
            model.predict(X, out=out)
        assert np.array_equal(held, before)


GIVEN = ("straight", "Fortran", "float64", "int64")


@pytest.mark.parametrize("layout", GIVEN)
def test_many_rows_take_no_memory_beside_their_outputs(layout):
    rows, model = 60_000, MLP([32, 64, 2])
    X = rows_of("float32", rows, 32)
    X = X if layout == "straight" else LAYOUTS[layout](X)
    out = np.empty((rows, 2), np.float32)
    model.predict(X, out=out)
    tracemalloc.start()
    model.predict(X, out=out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < inputs_module.BLOCK_BYTES + MIB < X.nbytes / 3


def workspace(model):
    """Return the bytes that the programs of a model hold."""
    programs = [program for shelf in model._programs._kept.values() for _, program in shelf._idle]
    return [sum(array.nbytes for array in program.workspace) for program in programs]


def test_the_workspace_does_not_grow_with_the_rows():
    found = []
    for rows in (2_000, 200_000):
        model = MLP([4, 16, 2])
        model.predict(rows_of("float32", rows, 4))
        found += workspace(model)
    assert len(found) == 2 and found[0] == found[1]


def test_memory_that_is_looked_for_is_found():
    """The same measurement sees a copy of X."""
    X = rows_of("float32", 60_000, 32)
    tracemalloc.start()
    X.copy()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak > inputs_module.BLOCK_BYTES + MIB


@pytest.mark.parametrize("kind", ["MLP", "Ensemble"])
def test_several_threads_predict_at_once(kind):
    model = MLP(SIZES) if kind == "MLP" else Ensemble(SIZES, 2)
    X = rows_of("float32", 4_000)
    expected = model.predict(X)
    counts = [1, 7, 40, 999, 4_000] * 12

    def work(count):
        out = np.empty_like(expected[..., :count, :])
        straight, turned = X[:count], np.asfortranarray(X[:count])
        found = [model.predict(straight), model.predict(turned), model.predict(straight, out=out)]
        return all(np.array_equal(each, expected[..., :count, :]) for each in found)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, counts, timeout=300))


def test_parts_of_one_out_are_filled_by_several_threads():
    model, X = MLP(SIZES), rows_of("float32", 4_000)
    out = np.empty((4_000, 3), np.float32)

    def fill(start):
        model.predict(X[start : start + 500], out=out[start : start + 500])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(0, 4_000, 500), timeout=300))
    assert out.tobytes() == model.predict(X).tobytes()


def test_weights_written_through_a_view_are_seen_at_once():
    model, X = MLP(SIZES), rows_of("float32")
    for rows in (1, 20, ROWS):
        model.predict(X[:rows])
        model.weights[0][...] *= 1.5
        fresh = MLP(SIZES)
        fresh.parameters = model.parameters
        assert model.predict(X[:rows]).tobytes() == fresh.predict(X[:rows]).tobytes()


def test_estimators_take_no_out():
    """Their signature is scikit-learn's."""
    pytest.importorskip("sklearn")
    from fastmlp.sklearn import MLPRegressor

    with pytest.raises(TypeError, match="out"):
        MLPRegressor().predict(rows_of("float32"), out=np.empty(ROWS, np.float32))


def test_out_is_not_in_memory_of_the_gradients():
    model = MLP([4, 8, 1], seed=0)
    X = np.zeros((3, 4), "float32")
    with pytest.raises(DomainError, match="out: got memory of the model's gradients"):
        model.predict(X, out=model.gradients.flat[:3].reshape(3, 1))
    assert not model.gradients.flat.any()
