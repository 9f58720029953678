"""What was found that a GPU would pass over."""

import dataclasses


@dataclasses.dataclass
class Finding:
    """Something found at a line of a kernel, how often, and what it was the first time.

    `source` is the text of that line, where it is known.
    """

    what: str
    kernel: str
    where: str
    source: str
    detail: str
    times: int = 0

    def __str__(self):
        return f"{self.what}; {self.kernel}, {self.where}: {self.times} times, first {self.detail}"


class Findings:
    """All findings, each once."""

    def __init__(self):
        self._held = {}

    def note(self, what, blocks, detail):
        """Note something of the instruction that some blocks are at."""
        kernel, where = blocks.where()
        if (what, kernel, where) not in self._held:
            source = blocks.launch.program.source(blocks.now)
            self._held[what, kernel, where] = Finding(what, kernel, where, source, detail)
        self._held[what, kernel, where].times += 1

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
