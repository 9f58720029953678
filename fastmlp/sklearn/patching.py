"""fastmlp's estimators in the place of scikit-learn's."""

from types import TracebackType

import sklearn.neural_network

from fastmlp.sklearn.estimators import MLPClassifier, MLPRegressor

REPLACEMENTS = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}

_originals: dict[str, type] = {}


class Patch:
    """What `patch` returns: as a context manager, it undoes what that call did."""

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
        # Somebody who had patched before wants it to stay so.
        if self._done:
            unpatch()


def patch() -> Patch:
    """Put fastmlp's estimators into `sklearn.neural_network`; a second call changes nothing.

    Only those two names change. What was imported from there before stays what it was, so patch
    first, and import afterwards; objects that exist, and pickles of them, are not touched.
    scikit-learn's classes stay in its private module, under which they are pickled.

    Returns
    -------
    Patch
        ``with patch(): ...`` takes it back at the end, unless it was patched before.
    """
    if _originals:
        return Patch(done=False)
    for name, replacement in REPLACEMENTS.items():
        _originals[name] = getattr(sklearn.neural_network, name)
        setattr(sklearn.neural_network, name, replacement)
    return Patch(done=True)


def unpatch() -> None:
    """Put back what `patch` replaced; without a patch, do nothing."""
    for name, original in _originals.items():
        # What somebody else has put there in the meantime is theirs.
        if getattr(sklearn.neural_network, name) is REPLACEMENTS[name]:
            setattr(sklearn.neural_network, name, original)
    _originals.clear()
