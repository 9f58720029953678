"""Whether scikit-learn is installed, and new enough for what this package overrides."""

import re

from fastmlp.errors import MissingPackageError

# The first release whose private hooks take sample weights.
OLDEST = (1, 7)
INSTALL = "pip install 'fastmlp[sklearn]'"


def require_scikit_learn() -> tuple[int, int]:
    """Return the version of scikit-learn, major and minor.

    Raises
    ------
    MissingPackageError
        If it is not installed, or older than `OLDEST`.
    """
    wanted = f"scikit-learn >= {OLDEST[0]}.{OLDEST[1]}: {INSTALL}"
    try:
        import sklearn
    except ImportError as error:
        raise MissingPackageError(
            f"fastmlp.sklearn: got no scikit-learn ({error}), wanted {wanted}"
        ) from error
    text = str(sklearn.__version__)
    found = re.match(r"(\d+)\.(\d+)", text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        raise MissingPackageError(f"fastmlp.sklearn: got scikit-learn {text}, wanted {wanted}")
    return version
