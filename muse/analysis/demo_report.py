"""The demo's table and picture."""
import torch
import torch.nn.functional as F
from matplotlib import colormaps

from muse.models.topology import resize_map
from muse.utils.viz_utils import image_grid

ROWS = (  # summary name, what it is called in the table, which way is better
    ("topology_kl", "topology KL to the teacher (nats)", "lower"),
    ("topology_kl_uniform", "  of a uniform map", ""),
    ("psnr", "PSNR (dB)", "higher"),
    ("psnr_mean_colour", "  of the mean colour", ""),
    ("ssim", "SSIM", "higher"),
    ("st_lpips", "ST-LPIPS (AlexNet)", "lower"),
    ("fd_efficientnet_lite0", "Frechet distance (EfficientNet-Lite0)", "lower"),
    ("zero_shot_top1", "zero-shot top-1", "higher"),
    ("linear_probe_top1", "linear probe top-1, MUSE", "higher"),
)


def table(summary):
    """Markdown: one row per metric, one column per moment, then the run's own figures."""
    moments = [name for name, value in summary.items() if isinstance(value, dict) and "psnr" in value]
    lines = [f"| metric | better | {' | '.join(moments)} |", f"|---|---|{'---:|' * len(moments)}"]
    lines += [f"| {label} | {better} | {' | '.join(f'{summary[moment][name]:.3f}' for moment in moments)} |"
              for name, label, better in ROWS]
    return "\n".join(lines) + (
        f"\n\nLinear probe of the frozen encoder: {summary['linear_probe_encoder_top1']:.3f}. Share of the largest class: "
        f"{summary['majority_share']:.3f}. {summary['images_seen']} training images seen, "
        f"{summary['seconds']:.0f} s, {summary['peak_memory_mb']} MB at most in one process.\n")


def spread_table(summaries):
    """Markdown: mean and standard deviation (n - 1) over runs, one row per metric, one column per moment."""
    moments = [name for name, value in summaries[0].items() if isinstance(value, dict) and "psnr" in value]
    lines = [f"| metric, {len(summaries)} seeds | better | {' | '.join(moments)} |", f"|---|---|{'---:|' * len(moments)}"]
    for name, label, better in ROWS:
        values = torch.tensor([[summary[moment][name] for moment in moments] for summary in summaries])
        cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(values.mean(dim=0), values.std(dim=0))]
        lines.append(f"| {label} | {better} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(shown):
    """Held-out photographs, their reconstructions after each stage, and where the attention goes: teacher and MUSE.

    shown: {moment: {images, reconstructions: N 3 H W; received: N h w; teacher: N Ns Ns}} for equal images.
    """
    moments = [moment for moment in shown if moment != "start"]
    last = shown[moments[-1]]
    images, grid = last["images"], last["received"].shape[-2:]
    side = int(last["teacher"].shape[-1] ** 0.5)
    teacher = resize_map(last["teacher"], (side, side), grid).mean(dim=1).unflatten(1, grid)
    rows = [images, *(shown[moment]["reconstructions"] for moment in moments),
            *(heat(maps, images.shape[-2:]) for maps in (teacher, shown["start"]["received"], last["received"]))]
    labels = ["photograph", *(f"after {moment.replace('stage', 'stage ')}" for moment in moments), "teacher's attention",
              "MUSE at start", "MUSE after stage 3"]
    return image_grid(rows, labels)


def heat(maps, size):
    """N h w -> N 3 H W: each map scaled to its own range, in a perceptually uniform colour map."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    maps = ((maps - low) / (high - low).clamp(min=1e-8))[:, None]
    maps = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
    colours = colormaps["viridis"](maps.numpy())[..., :3]
    return torch.from_numpy(colours).permute(0, 3, 1, 2).float()
