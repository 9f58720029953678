"""The mathematics: its rows, the derivation sheet, and the comparison with the oracle."""
