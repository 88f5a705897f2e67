"""Small pieces around a training loop: random state, stop signals, timing."""
import os
import random
import signal
import time
from contextlib import contextmanager

import numpy as np
import torch


def rng_state():
    """State of every generator of this process, in plain types that load with weights_only."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {"python": [version, list(words), gauss],
            "numpy": [name, keys.tolist(), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state):
    """Restore what `rng_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_rng():
    """Whatever draws random numbers inside the block leaves no trace after it."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


class StopSignal:
    """Notes SIGTERM and SIGINT instead of dying, so that the step can be finished and saved.

    `number` is the signal received, 0 before. The second signal acts as if this class were not there. Loader workers
    forked inside the block inherit the handler: there SIGTERM ends the worker, SIGINT is left to the main process.
    """

    def __enter__(self):
        self.number, self.owner, self.previous = 0, os.getpid(), {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if os.getpid() != self.owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self.number = number
        self.__exit__()


class Stopwatch:
    """Throughput since the last `restart`: images of all processes, and the share of time spent waiting for data."""

    def __init__(self):
        self.restart()

    def restart(self):
        """Begin a new window."""
        self.start, self.waited, self.images = time.perf_counter(), 0.0, 0

    def fetch(self, iterator, processes):
        """The next batch, its waiting time and its images (times `processes`) counted."""
        begin = time.perf_counter()
        batch = next(iterator)
        self.waited += time.perf_counter() - begin
        self.images += len(batch["image"]) * processes
        return batch

    def rates(self):
        """Images a second and the waiting share (0 to 1) of this window."""
        elapsed = max(time.perf_counter() - self.start, 1e-9)
        return {"images_per_second": self.images / elapsed, "data_wait_share": self.waited / elapsed}
