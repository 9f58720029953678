"""The estimators for skl2onnx: their networks are written as those of fastmlp itself."""

from typing import Any

import numpy as np

from fastmlp.errors import MissingPackageError
from fastmlp.onnx_export import OPSET, Graph
from fastmlp.sklearn.acceleration import OUTPUTS, hidden_activations
from fastmlp.sklearn.estimators import MLPClassifier, MLPRegressor

# Those that skl2onnx's own classifiers have.
OPTIONS = {
    "zipmap": [True, False, "columns"],
    "output_class_labels": [False, True],
    "nocl": [True, False],
}


def register_onnx() -> None:
    """Have skl2onnx convert `MLPClassifier` and `MLPRegressor`, alone and in pipelines.

    Raises
    ------
    MissingPackageError
        If skl2onnx is not installed.

    Examples
    --------
    >>> from fastmlp.sklearn import MLPRegressor, register_onnx
    >>> register_onnx()
    >>> graph = skl2onnx.to_onnx(MLPRegressor(tol=0.1).fit(X, y), X[:1])
    """
    try:
        from skl2onnx import update_registered_converter
    except ImportError:
        raise MissingPackageError(
            "register_onnx: got no skl2onnx, wanted it installed: pip install skl2onnx"
        ) from None
    classifier = "FastmlpMLPClassifier", _set_classifier_shapes, _convert_classifier
    update_registered_converter(MLPClassifier, *classifier, options=OPTIONS)
    regressor = "FastmlpMLPRegressor", _set_regressor_shape, _convert_regressor
    update_registered_converter(MLPRegressor, *regressor)


def _dtype_of(operator: Any) -> Any:
    """Return what is computed in: float64 for inputs of that, else float32."""
    from skl2onnx.common.data_types import DoubleTensorType

    return np.float64 if isinstance(operator.inputs[0].type, DoubleTensorType) else np.float32


def _set_regressor_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kind = DoubleTensorType if _dtype_of(operator) == np.float64 else FloatTensorType
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].set_type(kind([rows, operator.raw_operator.n_outputs_]))


def _set_classifier_shapes(operator: Any) -> None:
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

    calculate_linear_classifier_output_shapes(operator)
    labels, probabilities = operator.outputs
    if _of_several_labels(operator.raw_operator):
        labels.type.shape = probabilities.type.shape


def _outputs(scope: Any, operator: Any) -> tuple[Graph, str]:
    """Return a graph of an estimator's network, and the name of its outputs."""
    from onnx.helper import np_dtype_to_tensor_dtype

    estimator, dtype = operator.raw_operator, np.dtype(_dtype_of(operator))
    graph = Graph(dtype, scope.get_unique_variable_name("fastmlp"))
    x = graph.node("Cast", operator.inputs[0].full_name, to=np_dtype_to_tensor_dtype(dtype))
    loss, last = OUTPUTS[estimator.out_activation_]
    hidden = hidden_activations(estimator.activation, estimator.n_layers_ - 2)
    layers = list(zip(estimator.coefs_, estimator.intercepts_, strict=True))
    return graph, graph.chain(x, layers, [*hidden, last], loss)


def _convert_regressor(scope: Any, operator: Any, container: Any) -> None:
    graph, y = _outputs(scope, operator)
    _add(graph, container, {y: operator.outputs[0]})


def _convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto
    from skl2onnx.common.utils_classifier import get_label_classes

    graph, y = _outputs(scope, operator)
    estimator = operator.raw_operator
    if _of_several_labels(estimator):
        labels = graph.node("Cast", graph.node("Greater", y, 0.5), to=TensorProto.INT64)
    else:
        if estimator.out_activation_ == "logistic":
            y = graph.node("Concat", graph.node("Sub", 1.0, y), y, axis=1)
        index = graph.node("ArgMax", y, axis=1, keepdims=0)
        classes = get_label_classes(scope, estimator)
        # Numbers as int64, as skl2onnx declares them.
        classes = classes.astype(object if classes.dtype.kind in "OU" else np.int64)
        labels = graph.node("Gather", graph.constant(classes, classes.dtype), index)
    _add(graph, container, {labels: operator.outputs[0], y: operator.outputs[1]})


def _of_several_labels(estimator: Any) -> bool:
    """Return whether a row may have several labels."""
    return bool(estimator._label_binarizer.y_type_ == "multilabel-indicator")


def _add(graph: Graph, container: Any, outputs: dict[str, Any]) -> None:
    """Add a graph to that of skl2onnx; `outputs` says by which names it calls which variable."""
    from onnx.numpy_helper import from_array

    container.initializers += [from_array(each, name) for name, each in graph.constants.items()]
    for each in graph.nodes:
        rest = list(each.inputs), each.output
        container.add_node(each.operator, *rest, op_version=OPSET, **each.attributes)
    for name, variable in outputs.items():
        container.add_node("Identity", name, variable.full_name, op_version=OPSET)
