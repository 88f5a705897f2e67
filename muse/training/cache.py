"""What a step reads from frozen networks: encoder tokens, teacher maps, text embeddings; each computed once if kept."""
import torch

from muse.models.text import TextEncoder
from muse.models.topology import TopologyTeacher

CAPTIONS_KEPT = 100_000  # embeddings held in memory, about 3 kB each; a web-scale set passes through


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
    def __call__(self, keys, items):
        """Rows of `keys` (hashable, one per item), stacked, in main memory."""
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
        return batch


class Targets:
    """Batch of the loader -> what a step takes: images and, where the stage's losses ask, teacher maps and texts.

    Teacher and text encoder live here, outside the tokenizer: never in DDP, EMA or checkpoints. ValueError where the
    text encoder's width is not model.semantic_dim.
    """

    def __init__(self, config, stage, model, loss, accelerator):
        self.accelerator, self.device = accelerator, accelerator.device
        self.teacher = self.text = self.tokens = self.grid = None
        cached = config.training.cache_frozen_features
        if cached and "encoder" in stage.frozen:
            self.tokens = FrozenCache(model.encode_tokens, torch.bfloat16)
        if loss.needs_teacher:
            self.teacher = TopologyTeacher.from_config(config.model.teacher).to(self.device)
            self.maps = FrozenCache(self._teacher_map) if cached else lambda keys, images: self._teacher_map(images)
        if loss.needs_text:
            self.text = TextEncoder.from_config(config.model.text_encoder).to(self.device)
            if self.text.dim != config.model.semantic_dim:
                raise ValueError(f"model.semantic_dim is {config.model.semantic_dim}, but the text encoder gives "
                                 f"{self.text.dim} numbers: set model.semantic_dim={self.text.dim}")
            self.texts = FrozenCache(self.text.encode, max_entries=CAPTIONS_KEPT)

    @property
    def fields(self):
        """What the loader must yield beside images and keys."""
        return ("image", "caption") if self.text else ("image",)

    def _teacher_map(self, images):
        attention, self.grid = self.teacher(images)
        return attention

    @torch.no_grad()
    def __call__(self, batch):
        """Dict of `images` (B 3 H W in [0, 1]) and, as needed, `tokens`, `teacher` (map, grid) and `text` (B D)."""
        images = batch["image"].to(self.device, non_blocking=True).float() / 255  # B 3 H W
        flipped = batch["flipped"].tolist() if "flipped" in batch else [False] * len(images)
        keys = list(zip(batch["key"], flipped))
        inputs = {"images": images}
        with self.accelerator.autocast():
            if self.tokens:
                inputs["tokens"] = self.tokens(keys, images).to(self.device, torch.float32, non_blocking=True)  # B N C
            if self.teacher:
                inputs["teacher"] = self.maps(keys, images).to(self.device, non_blocking=True), self.grid  # B Ns Ns
        if self.text:  # in float32: equal captions are recognised by their embeddings
            inputs["text"] = self.texts(batch["caption"], batch["caption"]).to(self.device, non_blocking=True)  # B D
        return inputs
