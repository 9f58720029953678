"""Fits on several processes, and on several machines: data-parallel training by MPI.

``fit(..., communicator=MPI.COMM_WORLD)`` on each *rank*, which is one of the processes, trains one
model on the rows of all of them. The number of ranks changes no bit of the result.
"""

from fastmlp.distributed.communicators import Communicator
from fastmlp.distributed.data_parallel import DataParallel
from fastmlp.distributed.shares import rows_of_rank
from fastmlp.distributed.threads import run_on_threads

__all__ = ["Communicator", "DataParallel", "rows_of_rank", "run_on_threads"]
