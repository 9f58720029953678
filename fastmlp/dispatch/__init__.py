"""The choice of a kernel: its problem, its plan, why, and what is prepared ahead."""
