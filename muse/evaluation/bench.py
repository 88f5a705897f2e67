"""Every number of one table from one pass over labelled images: for following a small model through its stages."""
from dataclasses import dataclass

import torch

from muse.evaluation.evaluator import Evaluator, evaluating, full_precision
from muse.evaluation.linear_probe import probe_features
from muse.evaluation.topology import student_and_uniform_kl
from muse.evaluation.zero_shot import classify

BATCH = 32


@dataclass
class Labelled:
    """Images held in memory: uint8 N x 3 x H x W, labels int64 N, and the frozen encoder's tokens where known."""
    images: torch.Tensor
    labels: torch.Tensor
    tokens: torch.Tensor = None

    @classmethod
    def from_loader(cls, loader):
        """Read a finite loader with `image` and `label`."""
        batches = list(loader)
        return cls(torch.cat([batch["image"] for batch in batches]), torch.cat([batch["label"] for batch in batches]))

    def batches(self):
        """Yield (slice, images B 3 H W in [0, 1], tokens or None)."""
        for start in range(0, len(self.images), BATCH):
            part = slice(start, start + BATCH)
            yield part, self.images[part].float() / 255, None if self.tokens is None else self.tokens[part]


class Bench:
    """Measures one model after another on the same images; what does not change between them is computed once.

    Args: train, test: Labelled (probe training; everything else); teacher: TopologyTeacher; class_embeddings: K x D and
    class_names, for zero-shot; config: EvaluationConfig, its networks name the metrics. All in float32 on the CPU.
    """

    def __init__(self, train, test, teacher, class_embeddings, class_names, config):
        self.train, self.test = train, test
        self.class_embeddings, self.class_names = class_embeddings, class_names
        self.evaluator = Evaluator(config, "cpu", mean_colour=True)
        self.encoder = None  # the weights that the kept tokens belong to
        with full_precision("cpu"):
            maps = [teacher(images) for _, images, _ in test.batches()]
        self.maps, self.grid = torch.cat([attention for attention, _ in maps]), maps[0][1]

    def _keep_tokens(self, model):
        """Encoder tokens are computed again only where the encoder's weights differ from the last model's."""
        weights = {name: value.clone() for name, value in model.encoder.state_dict().items()}
        if self.encoder is not None and all(torch.equal(weights[name], self.encoder[name]) for name in weights):
            return
        for data in (self.train, self.test):
            data.tokens = None
            data.tokens = torch.cat([model.encode_tokens(images) for _, images, _ in data.batches()])
        self.encoder = weights

    @torch.no_grad()
    def measure(self, model):
        """(results, reconstructions N 3 H W, maps N h w): a dict of float by metric name, and what a picture shows.

        The maps are the attention that each student token receives on average, last block, heads averaged.
        """
        with evaluating(model), full_precision("cpu"):
            self._keep_tokens(model)
            train = [model(images, tokens, decode=False).pooled for _, images, tokens in self.train.batches()]
            pooled, semantic, divergences, pictures, received = [], [], [], [], []
            self.evaluator.reset()
            for part, images, tokens in self.test.batches():
                output = model(images, tokens, attention=True)
                divergences += [[value.item() * len(images)
                                 for value in student_and_uniform_kl(output, self.maps[part], self.grid)]]
                self.evaluator.update(images, output.reconstruction)
                pictures.append(output.reconstruction)
                received.append(output.attention[-1].mean(dim=(1, 2)).unflatten(1, output.latent.shape[-2:]))  # B h w
                pooled.append(output.pooled)
                semantic.append(output.semantic)
        kl, uniform_kl = (sum(values) / len(self.test.labels) for values in zip(*divergences))
        zero_shot = classify(torch.cat(semantic), self.test.labels, self.class_embeddings, self.class_names)
        results = {**self.evaluator.compute(), "topology_kl": kl, "topology_kl_uniform": uniform_kl,
                   "zero_shot_top1": zero_shot["zero_shot_top1"], "majority_share": zero_shot["majority_share"],
                   **self._probe(torch.cat(train), torch.cat(pooled))}
        return results, torch.cat(pictures), torch.cat(received)

    @torch.enable_grad()  # a probe trains
    def _probe(self, train, test):
        train, test = ({"label": data.labels, "pooled": pooled, "encoder": data.tokens.mean(dim=1)}
                       for data, pooled in ((self.train, train), (self.test, test)))
        result = probe_features(train, test, len(self.class_names))
        return {name: result[name] for name in ("linear_probe_top1", "linear_probe_encoder_top1")}
