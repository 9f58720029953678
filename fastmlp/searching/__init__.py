"""Searches: many networks trained on many parts of the rows, and the best of them."""
