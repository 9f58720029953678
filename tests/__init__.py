"""The tests. A package, so that they can share `tolerances`, `gradients` and `samples`."""
