"""Memory of a GPU, arrays that lie there, and what its driver says."""
