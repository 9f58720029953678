"""fastmlp's estimators in the place of scikit-learn's."""

from types import TracebackType

import sklearn.neural_network

from fastmlp.sklearn.estimators import MLPClassifier, MLPRegressor

REPLACEMENTS = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}

_originals: dict[str, type] = {}


class Patch:
    """What `patch` returns: a context manager that undoes what the call did."""

    def __init__(self, done: bool) -> None:
        self._done = done

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A patch that was there before this call stays.
        if self._done:
            unpatch()


def patch() -> Patch:
    """Put fastmlp's estimators into `sklearn.neural_network`; a second call changes nothing.

    Only those two names change. A name that was imported before stays what it was, so patch first,
    and import afterwards. Existing objects and their pickles are not touched. scikit-learn's
    classes stay in its private module, under which they are pickled.

    Returns
    -------
    Patch
        ``with patch(): ...`` takes the patch back at its end, unless there was one before.

    Examples
    --------
    >>> from fastmlp.sklearn import patch
    >>> with patch():
    ...     from sklearn.neural_network import MLPClassifier
    >>> MLPClassifier.__module__
    'fastmlp.sklearn.estimators'
    """
    if _originals:
        return Patch(done=False)
    for name, replacement in REPLACEMENTS.items():
        _originals[name] = getattr(sklearn.neural_network, name)
        setattr(sklearn.neural_network, name, replacement)
    return Patch(done=True)


def unpatch() -> None:
    """Put back what `patch` replaced; without a patch, do nothing.

    Examples
    --------
    >>> from fastmlp.sklearn import patch, unpatch
    >>> patched = patch()
    >>> unpatch()
    """
    for name, original in _originals.items():
        # A class that somebody else has put there in the meantime stays.
        if getattr(sklearn.neural_network, name) is REPLACEMENTS[name]:
            setattr(sklearn.neural_network, name, original)
    _originals.clear()
