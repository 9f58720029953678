"""Arrays of other libraries on a GPU: found, taken without a copy, or brought to the host."""

import numpy as np
import pytest

from fastmlp import MLP
from fastmlp.data import device_arrays
from fastmlp.data.admission import admit, admit_inputs, admit_validation
from fastmlp.data.arrays import check_matrix, host_copy, lies_on_gpu
from fastmlp.device.machine import detect
from fastmlp.dispatch.planning import Where
from fastmlp.errors import DeviceError, DomainError, ShapeError
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.problem import Machine

F4 = np.dtype("float32")
X = np.random.default_rng(1).normal(size=(6, 3)).astype(F4)
Y = np.random.default_rng(2).normal(size=(6, 2)).astype(F4)
# Sizes, loss and dtype.
NETWORK = (3, 2), LOSSES["half_squared_error"], F4


class Held:
    """An array on a GPU, as a library and as Numba show it: what reads its values is counted."""

    def __init__(self, array, kind=2, interface=True):
        self.array, self.kind, self.copies = array, kind, 0
        if interface:
            self.__cuda_array_interface__ = {"shape": array.shape}

    def __dlpack_device__(self):
        return (self.kind, 0)

    def copy_to_host(self):
        self.copies += 1
        return self.array

    def is_c_contiguous(self):
        return self.array.flags.c_contiguous

    def reshape(self, *shape):
        return Held(self.array.reshape(*shape))

    def __len__(self):
        return len(self.array)

    def __getattr__(self, name):
        if name in ("dtype", "ndim", "shape", "size", "nbytes"):
            return getattr(self.array, name)
        raise AttributeError(name)


def within(array, low, high, kind=0):
    values = array.array
    whole = kind & 4 == 0 or (values == np.floor(values)).all()
    return (
        bool(np.isfinite(values).all() and (values >= low).all() and (values <= high).all())
        and whole
    )


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU."""
    found = Machine(cores=1, cuda_missing=None, gpu="a GPU")
    monkeypatch.setattr(device_arrays, "detect", lambda: found)


@pytest.fixture
def gpu(monkeypatch, machine):
    """A machine whose GPU holds `Held` arrays, and whose checks run there."""
    monkeypatch.setattr(device_arrays, "as_device", lambda value, argument: value)
    monkeypatch.setattr(device_arrays, "all_within", within)
    sums = lambda matrix: bool((np.abs(matrix.array.sum(axis=1) - 1) < 1e-3).all())  # noqa: E731
    monkeypatch.setattr(device_arrays, "are_probabilities", sums)


def check(inputs, targets, loss="half_squared_error", there=True, outputs=2):
    where = Where("cuda" if there else "cpu")
    return admit(inputs, targets, (3, outputs), LOSSES[loss], F4, where)[0]


def test_what_lies_on_a_gpu():
    class Gradients:
        def __dlpack_device__(self):
            raise BufferError("records gradients")

    class InterfaceAlone:
        __cuda_array_interface__ = {}

    assert lies_on_gpu(Held(X)) and lies_on_gpu(Held(X, kind=13)) and lies_on_gpu(InterfaceAlone())
    # Page-locked memory of the host is the host's.
    for value in (X, X.tolist(), None, Held(X, kind=1), Held(X, kind=3), Gradients()):
        assert not lies_on_gpu(value)


@pytest.mark.parametrize(
    ("device", "kernel", "follows", "stays"),
    [
        ("auto", None, "cuda", True),
        ("cuda", None, "cuda", True),
        ("cpu", None, "cpu", False),
        ("auto", "cuda.layered", "auto", True),
        ("auto", "cpu.fused", "auto", False),
        ("auto", "reference", "auto", False),
    ],
)
def test_an_array_on_the_gpu_speaks_for_it(gpu, device, kernel, follows, stays):
    asked = Where(device, kernel)
    for y in (Held(Y), Y):
        data, where = admit(Held(X), y, *NETWORK, asked)
        assert where == Where(follows, kernel) and data.on_host != stays
    assert (type(admit_inputs(Held(X), 3, F4, asked)[0]) is Held) == stays
    assert admit(X.tolist(), Y, *NETWORK, asked)[1] == asked
    # Not for the validation: the fit runs where its own data are.
    validation = admit_validation((Held(X), Held(Y)), *NETWORK, asked)
    assert validation.on_host == (device != "cuda" and kernel != "cuda.layered")


@pytest.mark.skipif(detect().cuda_missing is None, reason="there is a GPU")
def test_without_a_usable_gpu_it_is_copied_to_the_host():
    assert admit(Held(X), Held(Y), *NETWORK, Where())[1] == Where()
    assert not device_arrays.stays(Where()) and not device_arrays.stays(Where("cuda"))
    held, targets = Held(X), Held(Y)
    model, expected = MLP([3, 2]), MLP([3, 2])
    assert model.fit(held, targets, epochs=1, batch_size=3).device == "cpu"
    expected.fit(X, Y, epochs=1, batch_size=3)
    assert (held.copies, targets.copies) == (1, 1)
    assert model.parameters.tobytes() == expected.parameters.tobytes()
    assert model.predict(held).tobytes() == expected.predict(X).tobytes()
    assert model.step(held, targets) == expected.step(X, Y)
    with pytest.raises(DeviceError, match="device: got 'cuda'"):
        model.fit(held, targets, device="cuda", batch_size=3)


def test_good_arrays_stay_where_they_are(gpu):
    inputs, targets = Held(X), Held(Y)
    data = check(inputs, targets)
    assert data.X is inputs and data.y.array.base is Y and not data.labels
    assert (inputs.copies, targets.copies) == (0, 0)
    assert host_copy(data.X) is X and host_copy(X) is X
    mixed = check(inputs, Y)
    assert mixed.X is inputs and mixed.y is Y
    asked = check(inputs, targets, there=False)
    assert asked.X is X and asked.y is Y


@pytest.mark.parametrize(
    ("loss", "array", "shape", "labels"),
    [
        ("softmax_cross_entropy", np.array([0, 1, 1, 0, 1, 0], F4), (6, 1), True),
        ("softmax_cross_entropy", np.array([[0], [1], [1], [0], [1], [0]], F4), (6, 1), True),
        ("softmax_cross_entropy", np.tile(np.array([0.25, 0.75], F4), (6, 1)), (6, 2), False),
        ("binary_cross_entropy", np.tile(np.array([0.25, 1], F4), (6, 1)), (6, 2), False),
    ],
)
def test_targets_stay_in_the_shape_that_kernels_want(gpu, loss, array, shape, labels):
    data = check(Held(X), Held(array), loss)
    assert type(data.y) is Held and data.y.shape == shape and data.labels == labels


@pytest.mark.parametrize(
    ("loss", "targets", "error"),
    [
        ("softmax_cross_entropy", np.array([0, 1, 2, 0, 1, 0], F4), DomainError),
        ("softmax_cross_entropy", np.array([0, 1, 0.5, 0, 1, 0], F4), DomainError),
        ("softmax_cross_entropy", np.full((6, 2), 0.4, F4), DomainError),
        ("binary_cross_entropy", np.full((6, 2), 1.5, F4), DomainError),
        ("poisson", np.full((6, 2), -1.0, F4), DomainError),
        ("half_squared_error", np.full((6, 2), np.nan, F4), DomainError),
        ("half_squared_error", np.ones((6, 3), F4), ShapeError),
        ("half_squared_error", np.ones((5, 2), F4), ShapeError),
    ],
)
def test_what_is_wrong_is_refused_in_the_words_of_the_host(gpu, loss, targets, error):
    held = Held(targets)
    with pytest.raises(error) as there:
        check(Held(X), held, loss)
    with pytest.raises(error) as here:
        check(X, targets, loss)
    assert str(there.value) == str(here.value) and held.copies == 1


@pytest.mark.parametrize(
    "array",
    [X.astype(np.float64), np.asfortranarray(X), np.arange(18).reshape(6, 3)],
    ids=["dtype", "layout", "whole numbers"],
)
def test_what_kernels_cannot_read_is_converted_on_the_host(gpu, array):
    held = Held(array)
    data = check(held, Held(Y))
    assert type(data.X) is np.ndarray and data.X.dtype == F4 and data.X.flags.c_contiguous
    np.testing.assert_array_equal(data.X, array.astype(F4))
    assert held.copies == 1


def test_bad_inputs_are_refused_in_the_words_of_the_host(gpu):
    spoilt = X.copy()
    spoilt[4, 1] = np.inf
    for array, error in ((spoilt, DomainError), (X[:, :2].copy(), ShapeError)):
        with pytest.raises(error) as there:
            check(Held(array), Held(Y))
        with pytest.raises(error) as here:
            check(array, Y)
        assert str(there.value) == str(here.value)


def test_an_array_without_the_interface_is_copied_by_dlpack():
    class OnlyDLPack:
        def __dlpack_device__(self):
            return (2, 0)

        def get(self):
            return X

    assert check_matrix(OnlyDLPack(), 3, F4, "X") is X


# Seen by the kernels ----------------------------------------------------------------------------


@pytest.fixture
def foreign():
    return pytest.importorskip("fastmlp_kernels.cuda.device.foreign")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_a_capsule_says_where_and_what_its_array_is(foreign, dtype):
    array = np.arange(24).reshape(4, 6).astype(dtype)[1:]
    described = foreign.Capsule(array.__dlpack__()).__cuda_array_interface__
    assert described["shape"] == (3, 6) and described["typestr"] == np.dtype(dtype).str
    assert described["data"] == (array.ctypes.data, False)
    assert described["strides"] in (None, array.strides)
    column = foreign.Capsule(array[:, 2].__dlpack__()).__cuda_array_interface__
    assert column["strides"] == (array.strides[0],)
    assert column["data"][0] == array[:, 2].ctypes.data


def test_a_capsule_keeps_its_array_and_then_frees_it(foreign):
    import weakref

    array = np.arange(3.0)
    gone = weakref.ref(array)
    capsule = foreign.Capsule(array.__dlpack__())
    del array
    assert gone() is not None
    del capsule
    assert gone() is None


def test_a_capsule_of_other_numbers_is_refused(foreign):
    with pytest.raises(TypeError, match="no NumPy dtype"):
        foreign.Capsule(np.ones(3, np.complex64).__dlpack__())


def test_an_array_is_taken_by_the_way_that_its_library_has(foreign, monkeypatch):
    taken = []
    monkeypatch.setattr(foreign, "here", lambda: 0)
    monkeypatch.setattr(foreign.cuda, "as_cuda_array", lambda value: taken.append(value) or "view")
    held = Held(X)
    assert foreign.as_device(held, "X") == "view" and taken.pop() is held

    class OnlyDLPack:
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, stream=None):
            assert stream == 1
            return X.__dlpack__()

    assert foreign.as_device(OnlyDLPack(), "X") == "view"
    assert taken.pop().__cuda_array_interface__["shape"] == X.shape


def test_an_array_on_another_gpu_is_named(foreign, machine, monkeypatch):
    monkeypatch.setattr(foreign, "here", lambda: 0)
    monkeypatch.setattr(foreign, "number_of", lambda value: 3)
    with pytest.raises(DeviceError, match="X: got an array on GPU 3, wanted one on GPU 0"):
        check(Held(X), Y)


def test_an_array_that_numba_has_no_dtype_for_goes_the_way_of_the_host(
    foreign, machine, monkeypatch
):
    asked = []

    def refuses(value, argument):
        asked.append(value)
        raise TypeError("a DLPack array of kind 4 has no NumPy dtype")

    monkeypatch.setattr(foreign, "as_device", refuses)
    held = Held(X)
    assert check(held, Y).X is X and held.copies == 1 and asked == [held]
