"""`cuda.layered`: one kernel after another for each layer, with cuBLASLt for the products."""
