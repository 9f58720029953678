"""Single calls of a program that trains by kernels of its own, and leaves all else to another."""

from typing import Any

from fastmlp_kernels.cuda.layered.program import LayeredProgram


class SingleCalls:
    """All of a `Program` but `prepare` and `epoch`, by a program that it holds.

    Parameters
    ----------
    layered : LayeredProgram
        Of the same problem.
    """

    def __init__(self, layered: LayeredProgram) -> None:
        self.layered = layered
        self.problem, self.memory = layered.problem, layered.memory
        self.straight = layered.straight

    def to_device(self, array: Any) -> Any:
        """See `Program.to_device`."""
        return self.layered.to_device(array)

    def to_host(self, array: Any, out: Any) -> None:
        """See `Program.to_host`."""
        self.layered.to_host(array, out)

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        self.layered.forward(parameters, X, out)

    def loss(self, y, factors=None):
        """See `Program.loss`."""
        return self.layered.loss(y, factors)

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        self.layered.backward(parameters, upstream, gradient, input_gradient)

    def value_and_gradient(
        self, parameters, X, y, gradient, factors=None, dropout=None, unchanged=False
    ):
        """See `Program.value_and_gradient`."""
        return self.layered.value_and_gradient(parameters, X, y, gradient, factors, dropout)

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`."""
        self.layered.update(parameters, gradient, state, hyper)

    def predict(self, parameters, X, out, link, share=1, unchanged=False):
        """See `Program.predict`."""
        return self.layered.predict(parameters, X, out, link)
