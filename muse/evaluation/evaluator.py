"""Reconstruction metrics: images and reconstructions -> sums -> PSNR, SSIM, Frechet distance, perceptual distance.

Conventions, the same for every metric:
- originals and reconstructions are clamped to [0, 1] and rounded to 8 bits, half up, as a saved PNG would hold them;
- everything runs in float32 without autocast or TF32; sums are float64 and are added over processes, so that batch
  size, order and number of processes change nothing beyond rounding;
- PSNR is the mean over images of each image's own PSNR at data range 1; an exact copy counts as 100 dB;
- SSIM is Wang et al. 2004: 11 x 11 Gaussian window of sigma 1.5, K = (0.01, 0.03), data range 1, population covariance,
  windows inside the image only, mean over colour channels. This equals scikit-image with gaussian_weights=True,
  use_sample_covariance=False, and torchmetrics' default.
"""
import contextlib
import warnings

import torch
import torch.nn.functional as F

FRECHET_NAMES = {"inception": "rfid", "efficientnet_lite0": "fd_efficientnet_lite0"}
PERCEPTUAL_NAMES = ("lpips", "st_lpips")
PSNR_OF_A_COPY = 100.0  # dB
WINDOW, SIGMA = 11, 1.5


def round_to_8_bits(images):
    """Clamp to [0, 1] and round to the nearest of 256 levels, half up. Any shape, returns [0, 1]."""
    return torch.floor(images.clamp(0, 1) * 255 + 0.5) / 255


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of each pair. B x 3 x H x W in [0, 1] -> B, at most 100."""
    error = (a - b).double().square().flatten(1).mean(1)
    return -10 * error.clamp(min=10 ** (-PSNR_OF_A_COPY / 10)).log10()


def ssim(a, b):
    """Structural similarity of each pair (convention: see the module). B x 3 x H x W in [0, 1], sides >= 11 -> B."""
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs sides of at least {WINDOW} pixels, got {tuple(a.shape[-2:])}: "
                         "evaluate larger images")
    offsets = torch.arange(WINDOW, device=a.device, dtype=torch.float32) - WINDOW // 2
    kernel = torch.exp(-offsets.square() / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    maps = torch.stack([a, b, a * a, b * b, a * b])  # 5 B 3 H W
    flat = maps.flatten(0, 2).unsqueeze(1)  # 15B 1 H W
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    mean_a, mean_b, aa, bb, ab = flat.view(5, *a.shape[:2], *flat.shape[-2:]).unbind(0)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    contrast = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a.square() + bb - mean_b.square() + c2)
    return (luminance * contrast).double().flatten(1).mean(1)


@contextlib.contextmanager
def full_precision(device):
    """Autocast and TF32 off inside: metrics are differences of nearly equal numbers."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(torch.device(device).type, enabled=False), cudnn.flags(
            enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def reduce_sums(*tensors):
    """Add tensors over the processes, in place; without torch.distributed nothing happens."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def sums_device(device):
    """Where float64 sums live: the device itself, or the CPU where the device has no float64 (MPS)."""
    return torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)


class GaussianSums:
    """Running float64 sums of features, enough for their mean and covariance.

    Args:
        dim: number of features F.
        device: where the sums live.
    """

    def __init__(self, dim, device):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.first = torch.zeros(dim, dtype=torch.float64, device=device)
        self.second = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, features):
        """Add a batch of features, B x F."""
        features = features.to(self.first.device).double()
        self.count += len(features)
        self.first += features.sum(0)
        self.second += features.T @ features

    def moments(self):
        """Mean (F) and unbiased covariance (F x F) over all processes; at least two images are needed."""
        count, first, second = self.count.clone(), self.first.clone(), self.second.clone()
        reduce_sums(count, first, second)
        mean = first / count
        return mean, (second - count * torch.outer(mean, mean)) / (count - 1)


def frechet_distance(mean_a, cov_a, mean_b, cov_b):
    """Squared Frechet distance of two Gaussians, float64.

    |m_a - m_b|^2 + tr(C_a + C_b) - 2 tr sqrt(C_a C_b); the last trace is the sum of the singular values of
    sqrt(C_a) sqrt(C_b), which stays exact for the rank-deficient covariances of few images.
    """
    singular_values = torch.linalg.svdvals(_root(cov_a).T @ _root(cov_b))
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * singular_values.sum()
    return distance.clamp(min=0).item()


def _root(covariance):
    """R with R R^T = covariance (positive semi-definite up to rounding)."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


class Evaluator:
    """Accumulates reconstruction metrics over batches and processes.

    Args:
        config: EvaluationConfig; `frechet` and `perceptual` name the networks, "none" leaves them out.
        device: device of the networks.
        mean_colour: also report `psnr_mean_colour`, the PSNR of each image's own mean colour as its reconstruction,
            the floor that a reconstruction has to beat.

    Raises ValueError for an unknown network name.
    """

    def __init__(self, config, device, mean_colour=False):
        if config.frechet not in (*FRECHET_NAMES, "none"):
            raise ValueError(f"evaluation.frechet is {config.frechet!r}: use one of {', '.join(FRECHET_NAMES)}, none")
        if config.perceptual not in (*PERCEPTUAL_NAMES, "none"):
            raise ValueError(f"evaluation.perceptual is {config.perceptual!r}: "
                             f"use one of {', '.join(PERCEPTUAL_NAMES)}, none")
        self.device = torch.device(device)
        self.frechet_name = FRECHET_NAMES.get(config.frechet)
        self.features = _frechet_network(config, self.device) if self.frechet_name else None
        self.metrics = {"psnr": psnr, "ssim": ssim}
        if config.perceptual != "none":
            self.metrics[config.perceptual] = _perceptual_network(config, self.device)
        if mean_colour:
            self.metrics["psnr_mean_colour"] = _psnr_of_mean_colour
        self.reset()

    def reset(self):
        """Forget everything seen."""
        self.sums = torch.zeros(1 + len(self.metrics), dtype=torch.float64, device=sums_device(self.device))
        self.gaussians = None

    @torch.no_grad()
    def update(self, images, reconstruction):
        """Add a batch: images and reconstruction B x 3 x H x W, nominally in [0, 1] (clamped and rounded here)."""
        if images.shape != reconstruction.shape:
            raise ValueError(f"images {tuple(images.shape)} and reconstruction {tuple(reconstruction.shape)} "
                             "differ in shape: crop or resize one of them")
        with full_precision(self.device):
            images = round_to_8_bits(images.to(self.device).float())
            reconstruction = round_to_8_bits(reconstruction.to(self.device).float())
            values = [metric(images, reconstruction) for metric in self.metrics.values()]
            sums = [value.to(self.sums.device).double().sum() for value in values]
            self.sums += torch.stack([self.sums.new_tensor(len(images)), *sums])
            if self.features is not None:
                self._add_features(images, reconstruction)

    def _add_features(self, *sets):
        features = [self.features(images) for images in sets]
        if self.gaussians is None:
            self.gaussians = [GaussianSums(f.shape[1], self.sums.device) for f in features]
        for gaussian, batch in zip(self.gaussians, features):
            gaussian.add(batch)

    def compute(self):
        """Metrics over all images of all processes: dict of float, with `images`, their number."""
        sums = self.sums.clone()
        reduce_sums(sums)
        count = int(sums[0].item())
        if count == 0:
            raise ValueError("no image was evaluated: check the evaluation shards and evaluation.max_images")
        result = {"images": count}
        result.update({name: (total / count).item() for name, total in zip(self.metrics, sums[1:])})
        if self.features is not None:
            result[self.frechet_name] = self._frechet(count)
        return result

    def _frechet(self, count):
        if self.gaussians is None:  # this process saw no image, the others wait for its share of the sums
            empty = self.features(torch.zeros(1, 3, 64, 64, device=self.device))
            self.gaussians = [GaussianSums(empty.shape[1], self.sums.device) for _ in range(2)]
        dim = len(self.gaussians[0].first)
        if count < 2:
            raise ValueError(f"{self.frechet_name} needs at least 2 images, got {count}: "
                             "evaluate more, or set evaluation.frechet=none")
        if count < dim:
            warnings.warn(f"{self.frechet_name} from {count} images with {dim} features: below {dim} images its "
                          "covariance is rank-deficient; compare only with figures from the same images", stacklevel=3)
        (mean_a, cov_a), (mean_b, cov_b) = (gaussian.moments() for gaussian in self.gaussians)
        return frechet_distance(mean_a, cov_a, mean_b, cov_b)


def _psnr_of_mean_colour(images, _):
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    return psnr(images, round_to_8_bits(mean))


def _frechet_network(config, device):
    from muse.evaluation.inception import FrechetFeatures

    return FrechetFeatures.from_config(config.frechet, config.frechet_weights).to(device).eval()


def _perceptual_network(config, device):
    from muse.models import lpips

    if config.perceptual == "st_lpips" and config.perceptual_weights is None:
        raise ValueError("evaluation.perceptual=st_lpips needs evaluation.perceptual_weights: "
                         "name its weight file, or set evaluation.perceptual=none")
    network = {"lpips": lpips.LPIPS, "st_lpips": lpips.ShiftTolerantLPIPS}[config.perceptual]
    return network(config.perceptual_weights).to(device).eval()


@torch.no_grad()
def evaluate_reconstruction(model, loader, config, device, mean_colour=False, observe=None):
    """Reconstruction metrics of a model over a loader.

    Args:
        model: MUSE_ViT, or any module whose output has a `reconstruction` B x 3 x H x W in [0, 1].
        loader: batches with `image`, uint8 B x 3 x H x W.
        config: EvaluationConfig.
        device: device of the model and of the metric networks.
        mean_colour: report `psnr_mean_colour` too.
        observe: called with (images, reconstruction) of every batch, for pictures.

    Returns dict of float: images, psnr, ssim, the perceptual and the Frechet distance under their own names.
    """
    evaluator = Evaluator(config, device, mean_colour=mean_colour)
    with evaluating(model), full_precision(device):
        for batch in loader:
            images = batch["image"].to(device).float() / 255  # B 3 H W
            reconstruction = model(images).reconstruction
            evaluator.update(images, reconstruction)
            if observe is not None:
                observe(images, reconstruction)
    return evaluator.compute()


@contextlib.contextmanager
def evaluating(model):
    """The model in eval mode inside, in its earlier mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
