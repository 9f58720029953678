"""The snippets of docs/scikit-learn.md, with no package but those that its extra installs."""

import importlib.util
import re
import subprocess
import sys

import pytest

from tests import ROOT

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

GUIDE = (ROOT / "docs" / "scikit-learn.md").read_text(encoding="utf-8")
# What the page does not ask for, and programs that read it may not have.
OTHERS = ("rich", "pandas", "tqdm", "matplotlib", "torch")
WITHOUT = f"""
import sys

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {OTHERS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
"""
HAS_CALLBACKS = importlib.util.find_spec("sklearn.callback") is not None


def snippets(*fences):
    """Return the code of fences of these languages, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert {language for language, _ in found} == {"python", "py", "bash"}
    return "\n".join(code for language, code in found if language in fences)


@pytest.mark.any_version
@pytest.mark.parametrize(
    "fences",
    [
        ("python",),
        pytest.param(
            # Those that need a newer scikit-learn than the oldest.
            ("python", "py"),
            marks=pytest.mark.skipif(not HAS_CALLBACKS, reason="scikit-learn has no callbacks"),
        ),
    ],
)
def test_snippets_need_only_what_the_page_names(fences, tmp_path, child_environment):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT + snippets(*fences)],
        cwd=tmp_path,
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    printed = result.stdout.splitlines()
    if "py" in fences:
        # The fit that a callback has ended: its epochs, and an accuracy that was enough.
        epochs, accuracy = next(line.split() for line in printed if re.match(r"\d+ 0\.9\d+$", line))
        assert 0 < int(epochs) < 200 and float(accuracy) >= 0.9


def test_the_page_names_every_keyword_that_scikit_learn_lacks():
    from fastmlp.sklearn import MLPClassifier, MLPRegressor

    for name in {*MLPClassifier._additions, *MLPRegressor._additions}:
        assert re.search(rf"^\| `{name}` \|", GUIDE, re.MULTILINE), name
