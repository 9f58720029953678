"""`cuda.fused`: a tile of rows a block, and the sum of all their gradients."""
