"""The policy of a fit on several ranks: what each is given, and how they stay alike."""

import platform
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from fastmlp.data.admission import OwnRows
from fastmlp.data.chunks import Chunks
from fastmlp.data.validation import Validation
from fastmlp.data.weighting import Weights
from fastmlp.dispatch.planning import Where, machine_with
from fastmlp.distributed.shares import rows_of_rank, shares
from fastmlp.errors import DeviceError, DomainError, DTypeError, NonFiniteTrainingError
from fastmlp.training.agreement import NONE, SUM, Agreement, check_alike, difference
from fastmlp.training.checkpoints import digest
from fastmlp.training.data_parallel_trainer import DataParallelTrainer, ShardOrders
from fastmlp.training.epochs import Epoch
from fastmlp.training.fit import Fit
from fastmlp.training.options import Options, settings_of

# Rows whose digests tell whether all ranks were given the same ones.
FIRST_ROWS = 64
RESUMED = "; all ranks have to find the same checkpoint"
OWN = "; each rank gives its own rows: see rows_of_rank, or DataParallel(..., shared_rows=True)"


def check_supported(given: Mapping[str, Any], X: Any, members: int | None, where: Where) -> Where:
    """Refuse what a fit on several ranks cannot do; return where it runs."""
    kind, split = given["class_weight"], given["validation_split"]
    if members is not None:
        raise DomainError(
            "communicator: got one with an Ensemble, wanted an MLP; each rank can train an "
            "Ensemble of its own, with seeds of its own"
        )
    if isinstance(X, Chunks):
        raise DomainError(
            "X: got Chunks with a communicator, wanted arrays; numpy.load(path, mmap_mode='r') "
            "and DataParallel(..., shared_rows=True) leave the rows in a file"
        )
    if split is not None:
        raise DomainError(
            f"validation_split: got {split!r} with a communicator, wanted validation_data=, the "
            "same on all ranks"
        )
    if isinstance(kind, str):
        raise DomainError(
            f"class_weight: got {kind!r} with a communicator, wanted a dict of weights: a rank "
            "does not know how many rows of a class the others have"
        )
    if where.device == "cuda" or (where.kernel or "cpu").startswith("cuda"):
        raise DeviceError(
            "device: got 'cuda' with a communicator, wanted 'cpu', where data-parallel fits run"
        )
    return where._replace(device="cpu")


def take_own(agreement: Agreement, X: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Return this rank's rows and their weights, where each rank is given all rows."""
    if not agreement.shared_rows:
        return X, y, weights
    for name, array in (("X", X), ("y", y), ("sample_weight", weights)):
        if not isinstance(array, np.ndarray) and not (name == "sample_weight" and array is None):
            raise DTypeError(
                f"{name}: got {type(array).__name__} with shared_rows=True, wanted a NumPy array "
                "or memory map"
            )
        if array is not None and len(array) != len(X):
            raise DomainError(f"{name}: got {len(array)} rows, wanted {len(X)}, the rows of X")
    ranks = agreement.ranks
    own = rows_of_rank(len(X), ranks.rank, ranks.size)
    return X[own], y[own], None if weights is None else weights[own]


def share(
    agreement: Agreement, data: Any, where: Where, columns: Sequence[str] | None
) -> tuple[OwnRows, Where]:
    """Return the data, with the number of rows of all ranks, and how many threads a rank uses."""
    ranks = agreement.ranks
    shown = {
        "rows": data.rows,
        "host": platform.node(),
        "first": digest(data.X[:FIRST_ROWS], data.y[:FIRST_ROWS]),
    }
    alike = {
        "shards": agreement.shards,
        "shared_rows": agreement.shared_rows,
        "columns of X": data.X.shape[1],
        "names of the columns": columns and list(columns),
        "dtype": str(data.X.dtype),
        "labels": data.labels,
        "y as a vector": data.vector,
    }
    records = agreement.gather({"alike": alike, **shown})
    check_alike([each["alike"] for each in records])
    counts = [each["rows"] for each in records]
    wanted = shares(sum(counts), ranks.size).tolist()
    if counts != wanted:
        raise DomainError(f"X: got {counts} rows on the ranks, wanted {wanted}{OWN}")
    same = len({each["first"] for each in records}) == 1
    if same and ranks.size > 1 and not agreement.shared_rows:
        raise DomainError(
            f"X: got the same first {min(FIRST_ROWS, data.rows)} rows on all {ranks.size} ranks, "
            f"wanted other ones on each{OWN}"
        )
    if where.threads is None:
        here = Counter(each["host"] for each in records)[shown["host"]]
        where = where._replace(threads=max(1, machine_with(None).cores // here))
    return OwnRows(data.X, data.y, data.labels, data.vector, sum(counts)), where


def share_weights(agreement: Agreement, data: Any, options: Options) -> tuple[Options, str]:
    """Return the options with the weights of all ranks' rows, and the digest of all data.

    The digest is that of the shards' digests, so that it does not depend on the number of ranks.
    It is "" if no rank keeps checkpoints.
    """
    given: Any = options.weights
    keeps = bool(options.checkpoints) or options.resume is not None
    raw = b"" if given is None else np.ascontiguousarray(given, dtype=np.float64).tobytes()
    records = agreement.gather({"weights": given is not None, "keeps": keeps}, raw)
    check_alike([{"sample_weight or class_weight": each["weights"]} for each in records])
    weights: Weights | None = None
    if given is not None:
        weights = np.concatenate([np.frombuffer(each["raw"]) for each in records])
    if not any(each["keeps"] for each in records):
        return _on_rank(agreement, options, weights), ""
    sizes = shares(data.rows, agreement.shards)[agreement.own].tolist()
    ends = np.cumsum(sizes).tolist()
    cuts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    own = [digest(data.X[cut], data.y[cut]) for cut in cuts]
    found = [each for record in agreement.gather({"digests": own}) for each in record["digests"]]
    of_weights = digest(weights)
    whole = digest(np.frombuffer("".join([*found, of_weights]).encode(), dtype=np.uint8))
    return _on_rank(agreement, options, weights), whole


def _on_rank(agreement: Agreement, options: Options, weights: Weights | None) -> Options:
    """Return the options of this rank: the first one alone writes files and lines."""
    options = replace(options, weights=weights)
    if agreement.ranks.rank:
        options = replace(options, checkpoints=(), progress=False, verbose=0)
    return options


class DataParallelFit(Fit):
    """A fit on several ranks, which all have the same parameters, history and state.

    Parameters
    ----------
    agreement : Agreement
    data_digest : str
        Of the rows and weights of all ranks.
    arguments
        Of `Fit`.
    """

    def __init__(self, agreement: Agreement, data_digest: str, *arguments: Any) -> None:
        self._agreement, self._digest = agreement, data_digest
        super().__init__(*arguments)

    def _trainer(self, *arguments: Any, **options: Any) -> Any:
        options["shuffle"] = self.options.shuffle
        return DataParallelTrainer(self._agreement, *arguments, **options)

    def _orders(self, rows: int) -> Any:
        return ShardOrders(self.state, self.trainer.part, self.options.shuffle)

    def _settings(self, validation: Mapping[str, Validation]) -> dict[str, str]:
        given = self.model, self.data, validation, self.options, self.patience
        return settings_of(*given, self._agreement.shards, self._digest)

    def run(self) -> None:
        """Train, if all ranks are about to do the same."""
        state = self.state
        alike = {
            **self._settings(self.validation),
            "epochs": self.options.epochs,
            "resume": self.options.resume is not None,
            "kernel": self.trainer.plan.kernel.name,
            "the state": digest(state.parameters, state.slots),
            "steps": int(state.steps),
            "finished epochs": int(state.epochs),
            "epochs of this fit": len(self.history),
        }
        goes_on = self._training and len(self.history) < self.options.epochs

        def then(records: list[dict[str, Any]]) -> str:
            # Sums over networks of other sizes cannot even tell of a failure.
            return SUM if goes_on and difference(records) is None else NONE

        records = self._agreement.gather(alike, then=then)
        check_alike(records, RESUMED if self.options.resume is not None else "")
        super().run()

    def _stopping(self) -> Sequence[int]:
        """Stop if any rank is to stop; see that all have the same parameters."""
        own = bool(super()._stopping())
        last = len(self.history) == self.options.epochs

        def then(records: list[dict[str, Any]]) -> str:
            return NONE if last or any(each["stop"] for each in records) else SUM

        shown = {"stop": own, "parameters": zlib.crc32(self.state.parameters.tobytes())}
        records = self._agreement.gather(shown, then=then)
        for each in records:
            each["digest of the parameters"] = each.pop("parameters")
            each["epoch"] = len(self.history)
        stop = any([each.pop("stop") for each in records])
        check_alike(records, ": callbacks may change a model only if they do so on all of them")
        return self._training if stop else ()

    def _refuse(self, epoch: Epoch) -> NoReturn:
        records = self._agreement.gather(
            {"bad": self.trainer.program.bad}, then=lambda records: NONE
        )
        try:
            super()._refuse(epoch)
        except NonFiniteTrainingError as error:
            bad = [str(rank) for rank, each in enumerate(records) if each["bad"]]
            if bad:
                error.add_note(f"communicator: the numbers are those of rank {', '.join(bad)}")
            raise
