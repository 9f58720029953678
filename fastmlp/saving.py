"""Networks written to files: those of fastmlp, and those of ONNX."""

from os import PathLike

from fastmlp.files.contents import Contents, kind_of, write
from fastmlp.onnx_export import write_graph
from fastmlp.state.parameters import bias_views, weight_views
from fastmlp_kernels.problem import parameter_layout


class Savable:
    """What a network does with files: see `fastmlp.network.Network`."""

    def _contents(self) -> Contents:
        """Return the network as a file holds it."""
        raise NotImplementedError

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model to a file, from which `fastmlp.load` makes it again.

        The file holds the parameters, the optimizer's state and the history, in the safetensors
        format with a JSON header. It is written beside `path` and moved into place, so that a crash
        leaves the old file or the new one. A fit of the model in another thread is not disturbed.

        Raises
        ------
        MissingPackageError
            If safetensors is not installed: ``pip install fastmlp[save]``.
        DTypeError
            If the model is of a class of your own, which no file can bring back.
        OSError
            If the file cannot be written; one that was there is as it was.
        """
        write(path, kind_of(self, "save"), self._contents())

    def to_onnx(self, path: str | PathLike[str]) -> None:
        """Write the network as an ONNX graph: its output "y" is what `predict` gives of its "X".

        X is of the model's dtype and has any number of rows. The graph of an ensemble holds all of
        its networks. The file is written beside `path` and moved into place, as `save` does.

        Raises
        ------
        DomainError
            If an activation has no form in ONNX, or the parameters are too many for a file.
        MissingPackageError
            If onnx is not installed: ``pip install fastmlp[onnx]``.
        OSError
            If the file cannot be written; one that was there is as it was.

        Examples
        --------
        >>> model.to_onnx("model.onnx")
        >>> session = onnxruntime.InferenceSession("model.onnx")
        >>> np.allclose(session.run(None, {"X": X})[0], model.predict(X), atol=1e-5)
        True
        """
        contents = self._contents()
        template, members = contents.template, contents.members
        held = contents.state.__getstate__()["parameters"]
        if members is not None:
            held = held.reshape(members, -1)
        layout = parameter_layout(template.sizes)
        # The networks of an ensemble side by side: their biases are the same for all rows.
        biases = [each[..., None, :] if members else each for each in bias_views(held, layout)]
        layers = list(zip(weight_views(held, layout), biases, strict=True))
        write_graph(path, layers, template.activations, template.loss, contents.vector)
