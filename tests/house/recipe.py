"""What CONTRIBUTING.md says to do for a new activation, loss and optimizer, done to a copy."""

import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

ALGEBRA = Path("kernels", "fastmlp_kernels", "algebra")


@dataclass(frozen=True)
class Step:
    """One kind of row: the file that is edited, what is imported there, the code and the row."""

    file: str
    imports: tuple[tuple[str, str], ...]
    functions: str
    table: str
    row: str

    def is_done(self, root: Path) -> bool:
        """Return whether the code is in the file: somebody follows the page in earnest."""
        return self.functions in (root / ALGEBRA / self.file).read_text(encoding="utf-8")

    def apply(self, root: Path) -> None:
        """Edit the file of a copy of the project."""
        if self.is_done(root):
            return
        path = root / ALGEBRA / self.file
        text = path.read_text(encoding="utf-8")
        for names, module in self.imports:
            line = f"from fastmlp_kernels.algebra.{module} import {names}\n"
            text = replaced(text, r"^(?=from fastmlp_kernels\.algebra)", line)
        text = replaced(text, rf"^(?={self.table} = Table\()", f"{self.functions}\n\n")
        row = textwrap.indent(self.row, 8 * " ")
        table = text.index(f"\n{self.table} = Table(")
        text = text[:table] + replaced(text[table:], r"^(?=    \),\n\)\n)", row)
        path.write_text(text, encoding="utf-8")


def replaced(text: str, pattern: str, new: str) -> str:
    """Return a text with its first match replaced; fail if there is none."""
    result, count = re.subn(pattern, lambda _: new, text, count=1, flags=re.MULTILINE)
    assert count == 1, pattern
    return result


def steps() -> list[Step]:
    """Return the steps as the page has them."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = re.findall(
        r"^### [^\n]*, in `(\w+\.py)`\n(.*?)(?=^##)", page, re.DOTALL | re.MULTILINE
    )
    found = []
    for file, text in sections:
        functions, row = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        said = re.findall(r"Import ((?:`\w+`(?: and )?)+) from `(\w+)`", text)
        imports = [(", ".join(re.findall(r"\w+(?=`)", names)), module) for names, module in said]
        (table,) = re.findall(r"ppend the row to `(\w+)`", text)
        found.append(Step(file, tuple(imports), functions, table, row))
    return found


def copy_of_the_project(root: Path) -> None:
    """Copy both packages, without what was compiled."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.nb?")
    for package in ("fastmlp", "kernels"):
        shutil.copytree(ROOT / package, root / package, ignore=unwanted)
