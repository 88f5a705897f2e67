"""Batches from WebDataset shards: an endless, resumable stream for training, each image once for evaluation."""
import logging
import signal
import tarfile
import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from muse.data.samples import Decoder, collate
from muse.data.sources import find_sources, read_shard
from muse.data.transforms import Preprocess

log = logging.getLogger(__name__)
UNREADABLE = (OSError, ValueError, EOFError, tarfile.TarError, zlib.error)
PATIENCE = 200   # samples a worker looks at before the share of broken ones may stop the run
TRIED = 1000     # samples looked at before a source counts as unusable


def build_train_loader(config, *, batch_size, seed, rank=0, world_size=1, fields=("image", "caption")):
    """Endless iterable of batches from `config.params.train_shards` (config: DatasetConfig).

    A batch is a dict: `key` list of str (shard name/sample key), `image` uint8 B x 3 x S x S, `flipped` bool B, and as
    `fields` asks `caption` list of str, `label` int64 B, `mask` int64 B x S x S (0 background). Samples that lack a
    field are skipped and counted. The order follows from (seed, rank, world_size, num_workers); `state_dict()` after a
    batch, given to `load_state_dict()` of such a loader, continues behind that batch.

    FileNotFoundError / ValueError for shards that are missing or hold no usable sample, here; ValueError while
    iterating when more than `max_skipped_fraction` of a worker's samples are broken.
    """
    sources = find_sources(config.params.train_shards, "dataset.params.train_shards")
    decode = Decoder(fields, Preprocess(config.preprocessing, train=True), train=True)
    check_sources(sources, decode, "dataset.params.train_shards")
    stream = TrainStream(sources, decode, batch_size, seed, rank, world_size, config.params)
    return TrainLoader(stream, config.params.num_workers)


def build_eval_loader(shards, preprocessing, *, batch_size, num_workers=0, part=(0, 1), fields=("image",),
                      max_images=None, max_skipped_fraction=0.05):
    """Finite iterable of batches as `build_train_loader` describes, without `flipped`, centre-cropped.

    Over all processes and workers every sample of `shards` (or the first `max_images`, in the order of the shards)
    comes exactly once, whatever the numbers; `part` is this process's (rank, number of processes), and a process may
    get none. Each pass starts anew, and ends in a ValueError when more than `max_skipped_fraction` of this process's
    samples (and more than one) are broken.
    """
    sources = find_sources(shards, "dataset.params.eval_shards")
    decode = Decoder(fields, Preprocess(preprocessing, train=False), train=False)
    check_sources(sources, decode, "dataset.params.eval_shards")
    stream = EvalStream(sources, decode, batch_size, *part, max_images)
    return EvalLoader(stream, num_workers, max_skipped_fraction)


class TrainLoader:
    """Iterates a TrainStream and remembers where each worker was at the last batch that was handed out."""

    def __init__(self, stream, num_workers):
        self.stream, self.num_workers = stream, num_workers
        self.next_worker = 0
        self.positions = [0] * max(1, num_workers)  # raw samples drawn
        self.skipped = [0] * max(1, num_workers)    # of these, broken

    def __iter__(self):
        self.stream.start = (self.next_worker, list(self.positions), list(self.skipped))
        for batch in _loader(self.stream, self.num_workers):
            if "error" in batch:
                raise ValueError(batch["error"])
            worker, self.positions[worker], self.skipped[worker] = batch.pop("position")
            self.next_worker = (worker + 1) % len(self.positions)
            yield batch

    def state_dict(self):
        """Position behind the last batch, as plain ints and lists."""
        return {"next_worker": self.next_worker, "positions": list(self.positions), "skipped": list(self.skipped),
                "world_size": self.stream.world_size, "seed": self.stream.seed}

    def load_state_dict(self, state):
        """Continue from `state`. Skipped stretches are read, not decoded. With another number of processes or workers
        the same order does not exist: a new one starts, with a warning."""
        if state["world_size"] == self.stream.world_size and len(state["positions"]) == len(self.positions):
            self.next_worker = state["next_worker"]
            self.positions, self.skipped = list(state["positions"]), list(state["skipped"])
            self.stream.seed = state["seed"]
        else:
            self.stream.seed = [*state["seed"], sum(state["positions"])]
            log.warning("data: the checkpoint was written with %d processes of %d workers, now %d of %d: the training "
                        "data start in a new order", state["world_size"], len(state["positions"]),
                        self.stream.world_size, len(self.positions))


class EvalLoader:
    """Iterates an EvalStream; `.samples` and `.skipped` count this process's part of the last pass."""

    def __init__(self, stream, num_workers, max_skipped_fraction):
        self.stream, self.num_workers, self.limit = stream, num_workers, max_skipped_fraction
        self.samples = self.skipped = 0

    def __iter__(self):
        self.samples = self.skipped = 0
        for batch in _loader(self.stream, self.num_workers):
            if "counts" not in batch:
                yield batch
                continue
            seen, skipped = batch["counts"]
            self.samples, self.skipped = self.samples + seen - skipped, self.skipped + skipped
        if self.skipped > max(1, self.limit * (self.samples + self.skipped)):
            raise ValueError(f"{self.skipped} of {self.samples + self.skipped} evaluation samples are broken (named "
                             f"above), more than dataset.params.max_skipped_fraction {self.limit}: the figures would "
                             "not describe this data; repair the shards")


@dataclass
class Tally:
    """What one worker has seen and skipped; each broken thing is named once."""
    seen: int = 0
    skipped: int = 0
    named: set = field(default_factory=set)

    def skip(self, name, reason):
        self.skipped += 1
        if name not in self.named:
            self.named.add(name)
            log.warning("skipped %s: %s", name, str(reason) or type(reason).__name__)


class Broken(Exception):
    """Stands in the raw stream for a shard that could not be read (on)."""


class TrainStream(IterableDataset):
    """Endless batches of one worker, each with its `position`: (worker, raw samples drawn, broken ones)."""

    def __init__(self, sources, decode, batch_size, seed, rank, world_size, params):
        self.sources, self.decode, self.batch_size = sources, decode, batch_size
        self.seed, self.rank, self.world_size = [seed], rank, world_size
        self.buffer, self.limit = max(1, params.shuffle_buffer), params.max_skipped_fraction
        self.start = (0, [0] * max(1, params.num_workers), [0] * max(1, params.num_workers))

    def __iter__(self):
        first, positions, skipped = self.start
        info = get_worker_info()
        count = info.num_workers if info else 1
        worker = ((info.id if info else 0) + first) % count  # the interrupted round goes on with its next worker
        tally = Tally(positions[worker], skipped[worker])
        consumer = self.rank * count + worker
        samples = []
        try:
            for position, (name, raw) in enumerate(self._shuffled(consumer, self.world_size * count)):
                if position < positions[worker]:
                    continue
                tally.seen += 1
                rng = np.random.default_rng([*self.seed, consumer, position])  # augmentation, free of the past
                sample = _decode(self.decode, name, raw, tally, rng)
                if sample is not None:
                    samples.append(sample)
                elif tally.seen >= PATIENCE and tally.skipped > self.limit * tally.seen:
                    raise ValueError(f"{tally.skipped} of {tally.seen} training samples are broken or lack a field "
                                     f"(for example {name}), more than dataset.params.max_skipped_fraction "
                                     f"{self.limit}")
                if len(samples) == self.batch_size:
                    yield {**collate(samples), "position": (worker, position + 1, tally.skipped)}
                    samples = []
        except ValueError as error:  # from a worker process a sentence travels better than an exception
            yield {"error": str(error)}

    def _shuffled(self, consumer, consumers):
        """(name, raw sample or Broken), mixed by weight over the sources and shuffled through the buffer."""
        rng = np.random.default_rng([*self.seed, consumer])
        streams = [_endless(source, [*self.seed, i], consumer, consumers) for i, source in enumerate(self.sources)]
        bounds = np.cumsum([source.weight for source in self.sources])
        waiting = []
        while True:
            chosen = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right")) if len(streams) > 1 else 0
            item = next(streams[chosen])
            if len(waiting) < self.buffer:
                waiting.append(item)
                continue
            i = int(rng.integers(self.buffer))
            item, waiting[i] = waiting[i], item
            yield item


class EvalStream(IterableDataset):
    """One worker's part of the evaluation samples, last its counts."""

    def __init__(self, sources, decode, batch_size, rank, world_size, max_images):
        self.shards = [shard for source in sources for shard in zip(source.names, source.urls)]
        self.decode, self.batch_size = decode, batch_size
        self.rank, self.world_size, self.max_images = rank, world_size, max_images

    def __iter__(self):
        info = get_worker_info()
        consumers = self.world_size * (info.num_workers if info else 1)
        consumer = self.rank * (info.num_workers if info else 1) + (info.id if info else 0)
        tally, samples = Tally(), []
        for name, raw in self._part(consumer, consumers):
            tally.seen += 1
            sample = _decode(self.decode, name, raw, tally)
            samples += [sample] if sample is not None else []
            if len(samples) == self.batch_size:
                yield collate(samples)
                samples = []
        if samples:
            yield collate(samples)
        yield {"counts": (tally.seen, tally.skipped)}

    def _part(self, consumer, consumers):
        """Whole shards when there are enough for everybody, else (and for a limit, which counts samples in order)
        every `consumers`-th sample."""
        if self.max_images is None and len(self.shards) >= consumers:
            for shard in self.shards[consumer::consumers]:
                yield from _raw_samples(*shard)
            return
        items = (item for shard in self.shards for item in _raw_samples(*shard))
        for i, item in enumerate(items):
            if i == self.max_images:
                return
            if i % consumers == consumer:
                yield item


def check_sources(sources, decode, key):
    """ValueError for a source none of whose first samples can be used, with the first reason."""
    for source in sources:
        reasons = []
        if not _any_usable(source, decode, reasons):
            raise ValueError(f"{key}: no usable sample in {', '.join(source.urls[:2])}"
                             f"{', ...' if len(source.urls) > 2 else ''} ({reasons[0] if reasons else 'it is empty'})")


def _any_usable(source, decode, reasons):
    for shard in zip(source.names, source.urls):
        for name, raw in _raw_samples(*shard):
            try:
                if isinstance(raw, Broken):
                    raise ValueError(raw)
                decode(raw, np.random.default_rng(0))
                return True
            except ValueError as error:
                reasons.append(f"{name}: {error}")
            if len(reasons) == TRIED:
                return False
    return False


def _decode(decode, name, raw, tally, rng=None):
    """Decoded sample with its key, or None (counted) when it is broken."""
    try:
        if isinstance(raw, Broken):
            raise ValueError(raw)
        return {"key": name, **decode(raw, rng)}
    except ValueError as error:
        tally.skip(name, error)
        return None


def _raw_samples(name, url):
    """(unique key, raw sample) of a shard; where it breaks off, (shard name, Broken) and the end."""
    try:
        for raw in read_shard(url):
            yield f"{name}/{raw['__key__']}", raw
    except UNREADABLE as error:
        yield name, Broken(f"the shard cannot be read to its end: {error}")


def _endless(source, seed, consumer, consumers):
    """Raw samples of a source for one consumer, epoch after epoch, shards in random order. Consumers share out whole
    shards, or where these are fewer single samples (by turns, so that each consumer sees all in the long run)."""
    shards = list(zip(source.names, source.urls))
    by_sample = len(shards) < consumers
    visit = 0 if by_sample else consumer
    barren = 0
    while barren < len(shards) * (consumers + 1):
        epoch, place = divmod(visit, len(shards))
        order = np.random.default_rng([*seed, epoch]).permutation(len(shards))
        found = False
        for i, item in enumerate(_raw_samples(*shards[order[place]])):
            broken = isinstance(item[1], Broken)
            if broken or not by_sample or (i + epoch) % consumers == consumer:
                found = found or not broken
                yield item
        barren = 0 if found else barren + 1
        visit += 1 if by_sample else consumers
    raise ValueError(f"{source.urls[0]} and its fellow shards no longer yield samples: are they still there?")


def _loader(stream, num_workers):
    return DataLoader(stream, batch_size=None, num_workers=num_workers, pin_memory=torch.cuda.is_available(),
                      worker_init_fn=_ignore_interrupt if num_workers else None)


def _ignore_interrupt(worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
