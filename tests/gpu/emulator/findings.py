"""What was found that a GPU would pass over."""

import dataclasses


@dataclasses.dataclass
class Finding:
    """Something found at a line of a kernel, how often, and what it was the first time."""

    what: str
    kernel: str
    where: str
    detail: str
    times: int = 0

    def __str__(self):
        return f"{self.what}; {self.kernel}, {self.where}: {self.times} times, first {self.detail}"


class Findings:
    """All findings, each once."""

    def __init__(self):
        self._held = {}

    def note(self, what, kernel, where, detail):
        found = self._held.setdefault((what, kernel, where), Finding(what, kernel, where, detail))
        found.times += 1

    def take(self):
        """Return the findings since this was called last."""
        held, self._held = list(self._held.values()), {}
        return held


class Clock:
    """Counts what happens on a device."""

    def __init__(self):
        self.now = 0

    def tick(self):
        self.now += 1
        return self.now
