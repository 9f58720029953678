"""`cuda.resident`: many batches in one launch, a network a block."""
