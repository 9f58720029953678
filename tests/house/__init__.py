"""The repository: layers, sizes, messages, pages, packages, the recipe for a new row."""
