"""Feature networks of the Frechet distance: Inception-v3 (rFID) and, for the miniature, EfficientNet-Lite0."""
import tempfile

import torch
from torch import nn

from muse.models.lpips import find_weights, read_weights, torch_cache


class FrechetFeatures(nn.Module):
    """Images [0,1] B 3 H W, rounded to 8 bits by the evaluator -> features B F, float32, whatever autocast says."""

    def __init__(self, extract, network):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.extract = extract

    @classmethod
    def from_config(cls, kind, weights=None):
        """`inception` (F 2048, torch-fidelity's network; weights None: its downloaded file, none is fetched here) or
        `efficientnet_lite0` (F 1280). Raises FileNotFoundError for missing weights, ValueError for another kind."""
        if kind == "inception":
            return cls(_inception_features, _inception(weights))
        if kind == "efficientnet_lite0":
            from muse.models.perceptual_loss import efficientnet_lite0
            return cls(_efficientnet_features, efficientnet_lite0(weights))
        raise ValueError(f"evaluation.frechet is '{kind}': choose inception or efficientnet_lite0")

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, images):
        with torch.autocast(images.device.type, enabled=False):
            return self.extract(self.network, images.float())


def _inception(weights):
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    weights = weights or find_weights(
        [torch_cache(URL_INCEPTION_V3.rsplit("/", 1)[1])],
        f"Inception weights for rFID: download {URL_INCEPTION_V3} and name it as evaluation.frechet_weights")
    with tempfile.NamedTemporaryFile(suffix=".pth") as plain:
        torch.save(read_weights(weights), plain.name)  # torch-fidelity unpickles freely: hand it only what we wrote
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=plain.name)


def _inception_features(network, images):
    return network((images * 255).round().to(torch.uint8))[0]  # B 2048


def _efficientnet_features(network, images):
    features = network.network.forward_features(network.prepare(images))
    return network.network.forward_head(features, pre_logits=True)  # B 1280
