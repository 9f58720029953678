"""scikit-learn's estimators, with epochs and predictions on fastmlp's kernels."""

from collections.abc import Callable, Sequence
from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network._multilayer_perceptron import MLPClassifier as PlainClassifier
from sklearn.neural_network._multilayer_perceptron import MLPRegressor as PlainRegressor
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

from fastmlp.device.machine import detect
from fastmlp.dispatch.planning import DEVICES
from fastmlp.errors import DeviceError, DomainError
from fastmlp.optimizers import Optimizer
from fastmlp.sklearn.acceleration import (
    NAME_OF,
    beyond_scikit_learn,
    hidden_activations,
    say_once,
    scikit_learn_activation,
)
from fastmlp.sklearn.callbacks import CallbackSupportMixin, EpochEnd, FitTask, check_callbacks
from fastmlp.sklearn.class_weights import check_class_weight, weigh_classes
from fastmlp.sklearn.leaving import scikit_learn_twin
from fastmlp.sklearn.meeting import meeting_here
from fastmlp.sklearn.prediction import Network, predict
from fastmlp.sklearn.saving import save_estimator
from fastmlp.sklearn.stochastic import fit_stochastic
from fastmlp_kernels.algebra import ACTIVATIONS

Array = NDArray[Any]
Callback = Callable[[EpochEnd], bool | None]

ADDED_CONSTRAINTS: dict[str, Any] = {
    "activation": [StrOptions({*NAME_OF, *ACTIVATIONS.names}), list, tuple],
    "device": [StrOptions(set(DEVICES))],
    "threads": [Interval(Integral, 1, None, closed="left"), None],
    # Here, in words that say what `Checkpoint` is for.
    "callbacks": "no_validation",
    "optimizer": [Optimizer, None],
}


class Accelerated(CallbackSupportMixin):
    """The private hooks of scikit-learn that both estimators override.

    scikit-learn's class comes next in the order of methods.
    """

    _plain: type
    _additions: tuple[str, ...] = ("device", "threads", "callbacks", "optimizer")
    # A class's constructor, and the names of its parameters.
    _names: tuple[Any, list[str]]

    @classmethod
    def _get_param_names(cls) -> list[str]:
        # scikit-learn reads the signature anew for each clone and each change of a parameter.
        found = vars(cls).get("_names")
        if found is None or found[0] is not cls.__init__:
            names: list[str] = super()._get_param_names()
            cls._names = found = cls.__init__, names
        return list(found[1])

    def to_sklearn(self) -> Any:
        """Return a plain scikit-learn estimator with copies of the parameters and of the state.

        It needs no fastmlp, and neither does its pickle. It goes on training as this one would.
        Parameters that scikit-learn does not have are dropped. After a fit with `optimizer`,
        scikit-learn's solver starts with a fresh state.
        """
        return scikit_learn_twin(self, self._plain, self._additions)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the estimator to a file, from which `fastmlp.load` makes it again.

        A fitted one predicts the same bits, and `partial_fit` goes on as it would have. The file
        has the format of `fastmlp.MLP.save`; nothing in it is executed.

        Raises
        ------
        DTypeError
            If a parameter is something that a file cannot hold, as `callbacks` are, or the
            estimator is of a class of your own.
        MissingPackageError
            If safetensors is not installed: ``pip install fastmlp[save]``.
        OSError
            If the file cannot be written; one that was there is as it was.

        Examples
        --------
        >>> from fastmlp.sklearn import MLPRegressor
        >>> MLPRegressor(hidden_layer_sizes=(8,), tol=0.1).fit(X, y).save("regressor.fastmlp")
        >>> fastmlp.load("regressor.fastmlp")
        MLPRegressor(hidden_layer_sizes=(8,), tol=0.1)
        """
        save_estimator(self, path)

    def _check_additions(self, incremental: bool) -> None:
        hidden = np.atleast_1d(np.asarray(self.hidden_layer_sizes, dtype=object))
        hidden_activations(self.activation, len(hidden))
        beyond = beyond_scikit_learn(self)
        if self.solver == "lbfgs" and beyond is not None:
            raise DomainError(f"{beyond} with solver='lbfgs', wanted solver='adam' or 'sgd'")
        check_callbacks(self.callbacks)
        missing = detect().cuda_missing if self.device == "cuda" else None
        if missing is not None:
            raise DeviceError(f"device: got 'cuda', wanted one that is here: {missing}")

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        self._check_additions(incremental)
        # Made here, since a prediction must not add an attribute.
        self.__dict__.setdefault("_network", Network())
        return super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> Any:
        def check() -> Any:
            return super(Accelerated, self)._validate_input(X, y, incremental, reset)

        meeting = meeting_here()
        return check() if meeting is None else meeting.checked(self, check)

    def _init_coef(self, fan_in: int, fan_out: int, dtype: Any) -> tuple[Array, Array]:
        weights, biases = super()._init_coef(fan_in, fan_out, dtype)
        if beyond_scikit_learn(self) is not None and self._starts_as_logistic():
            # scikit-learn starts layers with a third of the variance if their activation is
            # called "logistic". It does not know fastmlp's name for it.
            scale = np.sqrt(1 / 3).astype(dtype)
            weights, biases = weights * scale, biases * scale
        return weights, biases

    def _starts_as_logistic(self) -> bool:
        if self.activation == "logistic":
            return False
        layers = 1 if isinstance(self.activation, str) else len(self.activation)
        names = hidden_activations(self.activation, layers)
        return scikit_learn_activation(names) == "logistic"

    def _fit_stochastic(self, X: Any, y: Array, sample_weight: Any, *rest: Any) -> None:
        *memory, _, incremental = rest
        sample_weight = self._row_weights(X, y, sample_weight)
        fit_stochastic(self, X, y, sample_weight, tuple(memory), incremental)

    def _fit_lbfgs(self, X: Any, y: Array, sample_weight: Any, *rest: Any) -> None:
        say_once("the solver is 'lbfgs'")
        sample_weight = self._row_weights(X, y, sample_weight)
        task = FitTask(self, X, y, sample_weight, "fit", 0)
        super()._fit_lbfgs(X, y, sample_weight, *rest)
        task.end()

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> Array:
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        outputs = predict(self, X)
        if outputs is None:
            outputs = super()._forward_pass_fast(X, check_input=False)
        return outputs

    def _row_weights(self, X: Any, y: Array, sample_weight: Any) -> Any:
        return sample_weight

    def _targets_of(self, y: Array) -> Array:
        return y.ravel() if y.shape[1] == 1 else y

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs. They are made again when they are needed."""
        return {k: v for k, v in super().__getstate__().items() if k != "_network"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled estimator."""
        super().__setstate__(state)
        if "coefs_" in vars(self):
            self._network = Network()


class MLPClassifier(Accelerated, PlainClassifier):
    """scikit-learn's `MLPClassifier`, accelerated.

    Parameters
    ----------
    hidden_layer_sizes, solver, alpha, batch_size, ...
        As in scikit-learn, with the same defaults and, for the same `random_state`, the same
        training.
    activation : str, or list or tuple of str
        Also any activation of fastmlp, or one for each hidden layer.
    device : {"auto", "cpu", "cuda"}
        Where to compute; by default where it is predicted to be fastest.
    threads : int, optional
        The most threads to use. By default all that the process may use, and within a worker of
        joblib those that joblib leaves to it.
    class_weight : dict or "balanced", optional
        Weights of the classes, which multiply `sample_weight`. `partial_fit` takes only a dict.
    callbacks : list or tuple of callables, optional
        Each is called with an `EpochEnd` after each epoch and may return True to stop.
    optimizer : fastmlp optimizer, optional
        Such as ``fastmlp.AdamW(1e-3)``: trains in the place of `solver` and of its settings.

    See Also
    --------
    sklearn.neural_network.MLPClassifier : For all parameters, attributes and methods.

    Examples
    --------
    >>> from fastmlp.sklearn import MLPClassifier
    >>> classifier = MLPClassifier((16,), tol=0.01, random_state=0).fit(X, labels)
    >>> classifier.predict_proba(X).shape
    (200, 2)
    >>> type(classifier.to_sklearn()).__module__
    'sklearn.neural_network._multilayer_perceptron'
    """

    _kind = "MLPClassifier"
    _plain = PlainClassifier
    _additions = (*Accelerated._additions, "class_weight")
    _parameter_constraints: dict[str, Any] = {
        **PlainClassifier._parameter_constraints,
        **ADDED_CONSTRAINTS,
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str | Sequence[str] = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        device: str = "auto",
        threads: int | None = None,
        class_weight: dict[Any, float] | str | None = None,
        callbacks: Sequence[Callback] | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        self.device, self.threads, self.class_weight = device, threads, class_weight
        self.callbacks, self.optimizer = callbacks, optimizer

    def _check_additions(self, incremental: bool) -> None:
        super()._check_additions(incremental)
        check_class_weight(self.class_weight, incremental)

    def _row_weights(self, X: Any, y: Array, sample_weight: Any) -> Any:
        return weigh_classes(self, X, y, sample_weight)

    def _targets_of(self, y: Array) -> Array:
        return np.asarray(self._label_binarizer.inverse_transform(y))


class MLPRegressor(Accelerated, PlainRegressor):
    """scikit-learn's `MLPRegressor`, accelerated.

    Parameters
    ----------
    loss, hidden_layer_sizes, solver, alpha, batch_size, ...
        As in scikit-learn, with the same defaults and, for the same `random_state`, the same
        training.
    activation : str, or list or tuple of str
        Also any activation of fastmlp, or one for each hidden layer.
    device : {"auto", "cpu", "cuda"}
        Where to compute; by default where it is predicted to be fastest.
    threads : int, optional
        The most threads to use. By default all that the process may use, and within a worker of
        joblib those that joblib leaves to it.
    callbacks : list or tuple of callables, optional
        Each is called with an `EpochEnd` after each epoch and may return True to stop.
    optimizer : fastmlp optimizer, optional
        Such as ``fastmlp.AdamW(1e-3)``: trains in the place of `solver` and of its settings.

    See Also
    --------
    sklearn.neural_network.MLPRegressor : For all parameters, attributes and methods.

    Examples
    --------
    >>> from fastmlp.sklearn import MLPRegressor
    >>> regressor = MLPRegressor(hidden_layer_sizes=(16,), tol=0.01, random_state=0).fit(X, y)
    >>> regressor.predict(X).shape
    (200,)
    """

    _kind = "MLPRegressor"
    _plain = PlainRegressor
    _parameter_constraints: dict[str, Any] = {
        **PlainRegressor._parameter_constraints,
        **ADDED_CONSTRAINTS,
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str | Sequence[str] = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        device: str = "auto",
        threads: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(
            loss,
            hidden_layer_sizes,
            activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        self.device, self.threads = device, threads
        self.callbacks, self.optimizer = callbacks, optimizer
