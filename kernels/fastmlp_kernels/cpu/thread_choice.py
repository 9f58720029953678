"""How many threads an epoch is given: by prediction, and by trial where predictions are close."""

from collections.abc import Sequence

# Predicted times that differ by less than this factor are tried out.
CLOSE = 1.6
# Epochs until the number of threads that lost is tried again: neighbours come and go, and a virtual
# machine's processors are moved. Three epochs of trial in so many cost 2 % where one takes twice as
# long.
REVIEW = 150
# Where the predicted number has lost, other work on the machine may be why. That passes: it is
# tried again after so many epochs, and then after twice as many each time, up to `REVIEW`.
FIRST_REVIEW = 15
# The fastest epoch of a trial counts: the first one starts threads and fills caches, and the second
# may have to start threads anew, after a pause of the caller's.
TRIAL = 3


class ThreadChoice:
    """Chooses the threads of each epoch of a program by how long its earlier ones took.

    Results have the same bits on any number of threads, so that nothing but time depends on this.
    Two processors of a virtual machine met in 90 ns for some minutes and in 400 ns for others,
    presumably as the host had them on one die or on two: a step of 64-100-10 at batch 200 in
    float64 took 41 or 88 us on two threads, and always 67 on one (2-core AMD EPYC, 2026-11-24). No
    constant measured beforehand can tell.

    Parameters
    ----------
    candidates : sequence of int
        Numbers of threads to choose from, the one predicted to be best first.

    Attributes
    ----------
    tries : bool
        Whether there is a choice, so that `took` must be told.
    """

    def __init__(self, candidates: Sequence[int]) -> None:
        self._candidates = tuple(candidates)
        self.tries = len(self._candidates) > 1
        self._seconds: dict[int, float] = {}
        self._chosen = self._candidates[0]
        self._trial: list[float] = []
        self._tried = self._chosen
        self._epochs, self._until_review = 0, REVIEW

    def threads(self) -> int:
        """Return the number of threads for the next epoch."""
        return self._tried

    def took(self, seconds: float) -> None:
        """Take note of how long the epoch took for which `threads` was asked."""
        if not self.tries:
            return
        self._trial.append(seconds)
        if len(self._trial) < TRIAL:
            return
        self._seconds[self._tried] = min(self._trial)
        self._trial = []
        self._epochs += TRIAL
        missing = [each for each in self._candidates if each not in self._seconds]
        if missing:
            self._tried = missing[0]
            return
        before = self._chosen
        self._tried = self._chosen = min(self._candidates, key=self._seconds.__getitem__)
        if self._chosen != before:
            predicted = self._chosen == self._candidates[0]
            self._until_review = REVIEW if predicted else FIRST_REVIEW
        if self._epochs >= self._until_review:
            # All are measured anew, so that no lucky epoch of long ago decides.
            self._seconds, self._epochs = {}, 0
            self._until_review = min(REVIEW, 2 * self._until_review)
