"""The tests, a folder for each part of the project; what several share is here.

- `algebra`: the mathematics: its rows, the derivation sheet, the comparison with the oracle
- `cpu`: the CPU's kernels, their teams of threads, the compiler with its caches
- `gpu`: everything of the GPU; `*_cases.py` run in Numba's simulator, as PTX on an emulated GPU
  (`gpu/emulator`), or on a GPU
- `api`: what users call
- `ranks`: fits on several ranks, which are threads, or processes of MPI or PyTorch
- `scikit_learn`: `fastmlp.sklearn`, in the place of scikit-learn's own estimators
- `pages`: the site: the examples of its reference, its links, its pages in a browser
- `robustness`: attacks by threads, signals, forks, want of memory, hostile files, random calls
- `benchmarking`: the benchmarks and their reports, `dev.py gpu` included
- `house`: the repository itself: layers, sizes, messages, pages, packages, the recipe for a new row

No folder has the name of a package. One called `sklearn` or `cuda` would be imported in its place
by whoever runs Python inside `tests`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
