"""Every Python snippet of the README, in order, in a fresh interpreter, as a reader pastes them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_snippets_run_as_pasted(tmp_path):
    text = (ROOT / "README.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 5
    environment_path = f"{ROOT}:{ROOT / 'kernels'}"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(snippets)],
        cwd=tmp_path,
        env={"PYTHONPATH": environment_path, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # The two deliberate mistakes say what was wrong with what.
    assert "binary_cross_entropy is defined for predictions in [0, 1]" in result.stdout
    assert re.search(r"X: got .*5.*wanted .*8", result.stdout)
    assert "cpu.fused" in result.stdout
