"""Outputs of frozen networks, computed once: encoder tokens, teacher maps, text embeddings."""
import torch


class FrozenCache:
    """Remembers one output row per key, in main memory; computes only the rows it has not seen.

    compute: items (tensor B ... or list of B) -> tensor B ...; dtype: storage precision, None keeps the output's;
    max_entries: the oldest rows are dropped beyond this number, None keeps all.
    Rows always pass through storage precision, so that a row is the same the first and the second time it is read.
    """

    def __init__(self, compute, dtype=None, max_entries=None):
        self.compute = compute
        self.dtype = dtype
        self.max_entries = max_entries
        self.rows = {}

    @torch.no_grad()
    def __call__(self, keys, items, device):
        """Rows of `keys` (hashable, one per item) stacked on `device`."""
        new = {key: index for index, key in enumerate(keys) if key not in self.rows}  # a repeated key is computed once
        fresh = {}
        if new:
            chosen = list(new.values())
            subset = items[chosen] if torch.is_tensor(items) else [items[i] for i in chosen]
            fresh = dict(zip(new, self.compute(subset).to("cpu", self.dtype)))
        batch = torch.stack([fresh[key] if key in fresh else self.rows[key] for key in keys])
        self.rows.update((key, row.clone()) for key, row in fresh.items())  # clone: a row must not keep its batch alive
        while self.max_entries is not None and len(self.rows) > self.max_entries:
            del self.rows[next(iter(self.rows))]
        return batch.to(device, non_blocking=True)
