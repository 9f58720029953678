"""The messages of typical mistakes, as a file to be read: tests/house/messages.txt.

Write it anew after a message has changed, and review the difference::

    python3 dev.py write
"""

import sys
import textwrap
from pathlib import Path

import numpy as np
import scipy.sparse

import fastmlp
from fastmlp import schedules
from tests.tables import Column, Table

GOLDEN = Path(__file__).with_name("messages.txt")
HEAD = """\
What fastmlp says to 108 typical mistakes, and what it accepts as it is meant.
A test compares this file. Write it anew with: python3 dev.py write

X is 12 rows of 4 numbers, y 12 numbers, labels 12 classes from 0 to 2; model is
MLP([4, 3, 1]) and classifier MLP([4, 3, 3], loss="softmax_cross_entropy"), table a table of
the columns a, b, c and d that `fitted` was fitted with.
"""

MISTAKES = {
    "Activations": [
        'MLP([4, 3, 1], activations="rellu")',
        'MLP([4, 3, 1], activations="softmax")',
        'MLP([4, 3, 3], activations=["relu", "softmax"], loss="cross_entropy")',
        'MLP([4, 3, 1], activations="mish")',
        'MLP([4, 3, 1], activations=["relu"])',
        "MLP([4, 3, 1], activations=3)",
        'MLP([4, 3, 1], activations=["relu", "relu"], loss="poisson")',
    ],
    "Losses": [
        'MLP([4, 3, 1], loss="poison")',
        'MLP([4, 3, 1], loss="cross_entropy")',
        'MLP([4, 3, 1], loss="bce")',
        'MLP([4, 3, 1], loss="BCEWithLogits")',
        'MLP([4, 3, 3], loss="nll")',
        'MLP([4, 3, 3], loss="log_loss")',
        'MLP([4, 3, 1], loss="l2")',
        'MLP([4, 3, 1], loss="hinge")',
    ],
    "Other arguments of a network": [
        "MLP(4)",
        "MLP([4, 0, 1])",
        "MLP([4, 2.5, 1])",
        "MLP([10**10] * 2)",
        'MLP([4, 3, 1], dtype="float16")',
        "MLP([4, 3, 1], dtype=int)",
        'MLP([4, 3, 1], precision="float64")',
        'MLP([4, 3, 1], initializer="glorot")',
        'MLP([4, 3, 1], initializer="xavier")',
        'MLP([4, 3, 1], initializer="he")',
        'MLP([4, 3, 1], initializer="kaiming")',
        'MLP([4, 3, 1], initializer=["orthogonal"])',
        'MLP([4, 3, 1], reduction="none")',
        "MLP([4, 3, 1], seed=-1)",
        "Ensemble([4, 3, 1], members=0)",
    ],
    "Keywords": [
        "MLP([4, 3, 1], hidden=[64, 64])",
        "MLP([4, 1], hidden_layer_sizes=(64, 64))",
        'MLP([4, 3, 1], activation="relu")',
        "MLP([4, 3, 1], random_state=0)",
        "MLP([4, 3, 1], dropout=1.5)",
        "MLP([4, 3, 1], optimizer=Adam())",
        "Ensemble([4, 3, 1], n_models=8)",
        "model.fit(X, y, lr=0.1)",
        "model.fit(X, y, learning_rate=0.1)",
        "model.fit(X, y, n_epochs=5)",
        "model.fit(X, y, batchsize=4)",
        "model.fit(X, y, validation_split=0.2)",
        'model.fit(X, y, metrics=["accuracy"])',
        'model.fit(X, y, loss="mse")',
        "model.fit(X, y, patience=3)",
        "model.evaluate(X, y, batch_size=4)",
        "Adam(lr=0.1)",
        "Adam(betas=(0.9, 0.999))",
        "EarlyStopping(min_delta=0.1)",
    ],
    "Optimizers and schedules": [
        "model.fit(X, y, batch_size=4, optimizer=Adam)",
        "model.fit(X, y, batch_size=4, optimizer=0.1)",
        'model.fit(X, y, batch_size=4, optimizer="lbfgs")',
        'SGD("fast")',
        "SGD(nesterov=True)",
        "CosineDecay(1e-3, steps=0)",
        'LinearWarmup(100, "1e-3")',
        "model.step(X, y, SGD(lambda step: None))",
        "model.step(X, y, SGD(lambda step: [0.1, 0.2]))",
        "model.step(X, y, SGD(lambda step: -1.0))",
    ],
    "Inputs": [
        "model.predict(X[0])",
        "model.predict(X.ravel())",
        "model.predict(X.reshape(12, 2, 2))",
        "model.predict(X.T)",
        "model.predict(X[:, :3])",
        "model.predict([[1, 2, 3, 4], [1, 2]])",
        "model.predict(X.astype(str))",
        'model.predict([["red", "green", "blue", "blue"]])',
        "model.predict(X.astype(object))",
        "model.predict(X + 1j)",
        'model.predict(X.astype("datetime64[s]"))',
        "model.predict(csr_matrix(X))",
        "model.predict(None)",
        "model.predict(with_nan)",
        "model.predict(1e300 * X)",
        "model.predict([])",
        "model.fit(y, X, batch_size=4)",
    ],
    "Targets": [
        "model.fit(X, y[1:], batch_size=4)",
        "model.fit(X, y[None, :], batch_size=4)",
        "model.fit(X, one_hot, batch_size=4)",
        "model.fit(X, numpy.where(y > 0, numpy.nan, y), batch_size=4)",
        "MLP([4, 3, 3]).fit(X, labels, batch_size=4)",
        "classifier.fit(X, words, batch_size=4)",
        "classifier.fit(X, labels + 1, batch_size=4)",
        "classifier.fit(X, numpy.where(labels > 0, 1, -1), batch_size=4)",
        "classifier.fit(X, numpy.arange(12) % 5, batch_size=4)",
        "classifier.fit(X, y, batch_size=4)",
        "binary.fit(X, numpy.where(labels > 0, 1, -1), batch_size=4)",
        "binary.fit(X, labels, batch_size=4)",
    ],
    "Tables": [
        "MLP([2, 1]).predict(Table(a=y, city=words))",
        "fitted.predict(Table(a=y, b=y, c=y, city=words))",
        'MLP([2, 1]).predict(Table(a=y, city=Column(words, "category")))',
        'MLP([2, 1]).predict(Table(a=y, when=y.astype("datetime64[D]")))',
        "MLP([2, 1]).predict(Table(a=y, age=with_nan[:, 0]))",
        'fitted.predict(table[["b", "a", "c", "d"]])',
    ],
    "Fits and scores": [
        "model.fit(X, y, epochs=0)",
        'model.fit(X, y, batch_size=4, device="cuda:0")',
        'model.fit(X, y, batch_size=4, device="tpu")',
        "model.fit(X, y, batch_size=4, kernel=5)",
        "model.fit(X, y, batch_size=4, kernel=[])",
        "model.fit(X, y, batch_size=4, sample_weight=numpy.full(12, 1e308))",
        "classifier.fit(X, labels, batch_size=4, class_weight={0: 1.0, 2: 3.0})",
        "model.fit(X, y, batch_size=4, early_stopping=EarlyStopping)",
        'EarlyStopping(tolerance=float("nan"))',
        'model.evaluate(X, y, "accuracy")',
        "model.weights[:] = X",
        "model.backward()",
        "fastmlp.explain(X)",
        "fastmlp.warmup(3)",
    ],
}
ACCEPTED = [
    'MLP([4, 3, 1], activations="linear")',
    'MLP([4, 3, 1], activations=["Swish", "logistic"])',
    'MLP([4, 3, 1], activations="LeakyReLU")',
    'MLP([4, 3, 1], loss="mse")',
    'MLP([4, 3, 1], loss="mean_squared_error")',
    'MLP([4, 3, 1], loss="mae")',
    'MLP([4, 3, 1], loss="l1")',
    'MLP([4, 3, 3], loss="cross_entropy")',
    'MLP([4, 3, 3], loss="sparse_categorical_crossentropy")',
    'MLP([4, 3, 1], ["relu", "sigmoid"], loss="binary_crossentropy")',
    'MLP([4, 3, 1], dtype="double")',
    'MLP([4, 3, 1], initializer="xavier_uniform")',
    'MLP([4, 3, 1], reduction="average")',
    'fastmlp.optimizers.check_optimizer("adam")',
    'fastmlp.optimizers.check_optimizer("SGD")',
    "LinearWarmup(100, 1e-3)",
    'EarlyStopping(monitor="val_loss")',
    'fastmlp.dispatch.planning.check_place("gpu", None)',
    "model.predict(X[:0]).shape",
    "binary.fit(X, labels > 0, batch_size=4, epochs=1).metric",
    "fitted.predict(X).shape",
    "fastmlp.LOSSES",
]


def surroundings():
    """Return what the mistakes are made with, anew for each of them."""
    X = np.linspace(-1, 1, 48).reshape(12, 4)
    y = np.linspace(-1, 1, 12)
    with_nan = X.copy()
    with_nan[3:5, 0] = np.nan
    table = Table(**dict(zip("abcd", X.T, strict=True)))
    fitted = fastmlp.MLP([4, 3, 1])
    fitted.fit(table, y, batch_size=4, epochs=1)
    labels = np.arange(12) % 3
    return {
        **{name: getattr(fastmlp, name) for name in ("MLP", "Ensemble", "Adam", "SGD")},
        **{name: getattr(schedules, name) for name in ("CosineDecay", "LinearWarmup")},
        "EarlyStopping": fastmlp.EarlyStopping,
        "fastmlp": fastmlp,
        "numpy": np,
        "csr_matrix": scipy.sparse.csr_matrix,
        "Table": Table,
        "Column": Column,
        "X": X,
        "y": y,
        "with_nan": with_nan,
        "labels": labels,
        "one_hot": np.eye(3)[labels],
        "words": np.array(["red", "green", "blue"])[labels],
        "model": fastmlp.MLP([4, 3, 1]),
        "classifier": fastmlp.MLP([4, 3, 3], loss="softmax_cross_entropy"),
        "binary": fastmlp.MLP([4, 3, 1], ["relu", "sigmoid"], "binary_cross_entropy"),
        "table": table,
        "fitted": fitted,
    }


def message_of(code):
    """Return the message that a mistake gets."""
    try:
        exec(code, surroundings())
    except fastmlp.FastMLPError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"nothing was raised by {code}")


def written():
    """Return the file as the code stands."""
    lines = [HEAD]
    for topic, mistakes in MISTAKES.items():
        lines.append(f"{topic}\n{'=' * len(topic)}\n")
        for code in mistakes:
            lines += [code, textwrap.fill(message_of(code), 96, **INDENTED), ""]
    lines.append("Accepted\n========\n")
    for code in ACCEPTED:
        found = repr(eval(code, surroundings()))
        lines += [code, textwrap.fill(found, 96, **INDENTED), ""]
    return "\n".join(lines)


INDENTED = {
    "initial_indent": "    ",
    "subsequent_indent": "    ",
    "break_long_words": False,
    "break_on_hyphens": False,
}


def test_the_messages_are_those_that_have_been_reviewed():
    assert written() == GOLDEN.read_text(encoding="utf-8"), "stale: run python3 dev.py write"


def test_there_are_108_mistakes_and_none_twice():
    mistakes = [code for of_topic in MISTAKES.values() for code in of_topic]
    assert len(mistakes) == len(set(mistakes)) == 108


if __name__ == "__main__":
    GOLDEN.write_text(written(), encoding="utf-8")
    sys.exit(0)
