"""Networks as ONNX graphs: each activation is its row's formula, or the operator that is just that.

The operators are those of version 13 of ONNX (2020), so that most programs read the files. What a
float32 attribute of an operator would round, such as the slope of a leaky ReLU in float64, is a
constant of the network's dtype here.
"""

import ast
import math
import operator
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.atomic_writing import write_atomically
from fastmlp.errors import DomainError, MissingPackageError
from fastmlp.version import VERSION
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, error_function

Array = NDArray[Any]

OPSET, IR_VERSION = 13, 7
# A file of protocol buffers cannot be larger; a part is left for the nodes.
LARGEST_BYTES = 2**31 - 2**20

# Activations and links that are an operator themselves.
OPERATORS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
LINKS = {"softmax": "Softmax"}
# A formula that overflows as it is shown.
FORMULAS = {"softplus": "max(z, 0) + log(1 + exp(-abs(z)))"}
# What formulas are made of: the operator of ONNX, and what it does to constants.
Part = tuple[str, Callable[..., float]]
SYMBOLS: dict[type, Part] = {
    ast.Add: ("Add", operator.add),
    ast.Sub: ("Sub", operator.sub),
    ast.Mult: ("Mul", operator.mul),
    ast.Div: ("Div", operator.truediv),
    ast.Pow: ("Pow", operator.pow),
    ast.USub: ("Neg", operator.neg),
    ast.Gt: ("Greater", operator.gt),
    ast.Lt: ("Less", operator.lt),
    ast.GtE: ("GreaterOrEqual", operator.ge),
    ast.LtE: ("LessOrEqual", operator.le),
}
FUNCTIONS: dict[str, Part] = {
    "abs": ("Abs", abs),
    "erf": ("Erf", math.erf),
    "exp": ("Exp", math.exp),
    "log": ("Log", math.log),
    "max": ("Max", max),
    "min": ("Min", min),
    "sqrt": ("Sqrt", math.sqrt),
    "tanh": ("Tanh", math.tanh),
}


class Node(NamedTuple):
    """An operator, the names of its inputs and of its output, and its attributes."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


class Graph:
    """The nodes and the constants of a network; nothing of the package onnx.

    Parameters
    ----------
    dtype : dtype
        Of all numbers.
    prefix : str
        Of the names that the graph makes.
    """

    def __init__(self, dtype: Any, prefix: str = "") -> None:
        self._dtype, self._prefix = np.dtype(dtype), prefix
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}

    def node(self, kind: str, *inputs: str | float, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        names = tuple(each if isinstance(each, str) else self.constant(each) for each in inputs)
        output = f"{self._prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(Node(kind, names, output, attributes))
        return output

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant, by default of the graph's dtype; return its name."""
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype or self._dtype)
        return name

    def chain(
        self, x: str, layers: Sequence[tuple[Array, Array]], activations: Sequence[str], loss: str
    ) -> str:
        """Add a chain of layers, and the link of the loss; return the name of the predictions.

        Parameters
        ----------
        x : str
            The name of the inputs.
        layers : sequence of (ndarray, ndarray)
            Weights (inputs, outputs) and biases (outputs,); of several networks (members, inputs,
            outputs) and (members, 1, outputs).
        activations : sequence of str
            Of each layer.
        loss : str

        Raises
        ------
        DomainError
            If an activation or a link has no form in ONNX.
        """
        for (W, b), activation in zip(layers, activations, strict=True):
            z = self.node("Add", self.node("MatMul", x, self.constant(W)), self.constant(b))
            x = self.activation(activation, z)
        link = LOSSES[loss].link
        if link is None:
            return x
        if link.__name__ not in LINKS:
            wanted = f"one whose link is one of {', '.join(LINKS)}, or none"
            raise DomainError(f"to_onnx: got loss {loss!r}, wanted {wanted}: it has no ONNX form")
        return self.node(LINKS[link.__name__], x, axis=-1)

    def activation(self, name: str, z: str) -> str:
        """Add an activation of `z`; return the name of its output."""
        if name in OPERATORS:
            return self.node(OPERATORS[name], z)
        formula = FORMULAS.get(name, ACTIVATIONS[name].formula)
        try:
            return str(self._term(ast.parse(formula, mode="eval").body, z))
        except (SyntaxError, KeyError) as error:
            raise DomainError(
                f"to_onnx: got activation {name!r} of the formula {formula!r}, wanted one of z, "
                f"numbers, conditions, + - * / ** and {', '.join(FUNCTIONS)}: it has no ONNX form"
            ) from error

    def _term(self, term: ast.expr, z: str) -> str | float:
        """Add a term of a formula; return the name of its output, or the number that it is."""
        match term:
            case ast.Name("z"):
                return z
            case ast.Name("pi"):
                return math.pi
            case ast.Constant(int() | float() as value):
                return value
            case ast.UnaryOp(symbol, operand):
                return self._apply(SYMBOLS[type(symbol)], operand, z=z)
            case ast.BinOp(left, symbol, right) | ast.Compare(left, [symbol], [right]):
                return self._apply(SYMBOLS[type(symbol)], left, right, z=z)
            case ast.Call(ast.Name(function), arguments, []):
                return self._apply(FUNCTIONS[function], *arguments, z=z)
            case ast.IfExp(test, body, otherwise):
                chosen = [self._term(each, z) for each in (test, body, otherwise)]
                return self.node("Where", *chosen)
        raise KeyError(ast.unparse(term))

    def _apply(self, part: Part, *terms: ast.expr, z: str) -> str | float:
        kind, function = part
        inputs = [self._term(each, z) for each in terms]
        if not any(isinstance(each, str) for each in inputs):
            return function(*inputs)
        if kind == "Erf" and self._dtype == np.float64:
            return self._erf(str(inputs[0]))
        return self.node(kind, *inputs)

    def _erf(self, z: str) -> str:
        """Add the error function of float64, which onnxruntime does not have."""
        node = self.node
        size = node("Min", node("Abs", z), float(error_function.LAST_64))
        near = node("Add", z, node("Mul", z, self._polynomial(node("Mul", size, size), "S", 12)))
        h = self._polynomial(size, "T", 17)
        for _ in range(4):
            h = node("Mul", h, node("Add", h, 2.0))
        far = node("Sub", 1.0, node("Div", 1.0, node("Add", 1.0, h)))
        return node("Where", node("Less", size, 1.0), near, node("Mul", node("Sign", z), far))

    def _polynomial(self, x: str, letter: str, count: int) -> str:
        """Add a polynomial with the coefficients of `error_function`."""
        *rest, last = (float(getattr(error_function, f"{letter}{k}")) for k in range(count))
        value: str | float = last
        for coefficient in reversed(rest):
            value = self.node("Add", self.node("Mul", x, value), coefficient)
        return str(value)


def write_graph(
    path: str | PathLike[str],
    layers: Sequence[tuple[Array, Array]],
    activations: Sequence[str],
    loss: str,
    vector: bool,
) -> None:
    """Write a chain of layers to a file: see `Graph.chain`, and `Network.to_onnx`."""
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise MissingPackageError(
            "to_onnx: got no onnx, wanted it installed: pip install fastmlp[onnx]"
        ) from None
    size = sum(W.nbytes + b.nbytes for W, b in layers)
    if size > LARGEST_BYTES:
        raise DomainError(
            f"to_onnx: got parameters of {size:,} bytes, wanted at most {LARGEST_BYTES:,}, which "
            "an ONNX file can hold; write the networks of an ensemble one by one: ensemble[k]"
        )
    (first, _), (last, _) = layers[0], layers[-1]
    graph = Graph(first.dtype)
    y = graph.chain("X", layers, activations, loss)
    if vector:
        graph.node("Squeeze", y, graph.constant([-1], np.int64))
    graph.nodes[-1] = graph.nodes[-1]._replace(output="y")
    shape = [*last.shape[:-2], "rows", *([] if vector else [last.shape[-1]])]
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    value = helper.make_tensor_value_info
    whole = helper.make_graph(
        [
            helper.make_node(each.operator, each.inputs, [each.output], **each.attributes)
            for each in graph.nodes
        ],
        "fastmlp",
        [value("X", kind, ["rows", first.shape[-2]])],
        [value("y", kind, shape)],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    model = helper.make_model(
        whole,
        producer_name="fastmlp",
        producer_version=VERSION,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model)
    write_atomically(path, model.SerializeToString())
