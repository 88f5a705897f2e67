"""How far the student's attention topology is from the teacher's: the topology loss, measured over images."""
import torch

from muse.evaluation.evaluator import evaluating, full_precision, reduce_sums, sums_device
from muse.losses.topology import topology_loss


def student_and_uniform_kl(output, teacher, teacher_grid):
    """Topology loss of a MuseOutput's last map, mean over heads, and of a uniform map in its place: two scalars."""
    student = output.attention[-1].mean(dim=1, keepdim=True)  # B 1 N N
    uniform = torch.full_like(student, 1 / student.shape[-1])
    grid = output.latent.shape[-2:]
    return [topology_loss([maps], teacher, teacher_grid, grid) for maps in (student, uniform)]


@torch.no_grad()
def evaluate_topology(model, teacher, loader, device):
    """Mean KL(teacher || student) in nats per query, by the definition of `muse.losses.topology`.

    Args:
        model: MUSE_ViT; its map is the last block's, mean over heads, whatever its variant trains.
        teacher: TopologyTeacher.
        loader: batches with `image`, uint8 B x 3 x H x W.
        device: device of both.

    Returns dict of float: `topology_kl` of the student, `topology_kl_uniform` of a map that attends everywhere equally
    (the value of a student that knows nothing). Raises ValueError when no image came.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=sums_device(device))
    with evaluating(model), full_precision(device):
        for batch in loader:
            images = batch["image"].to(device).float() / 255  # B 3 H W
            output = model(images, attention=True, decode=False)
            losses = student_and_uniform_kl(output, *teacher(images))
            sums += torch.stack([losses[0].new_ones(()), *losses]).to(sums.device).double() * len(images)
    reduce_sums(sums)
    if sums[0] == 0:
        raise ValueError("no image was evaluated: check the evaluation shards and evaluation.max_images")
    student_kl, uniform_kl = (sums[1:] / sums[0]).tolist()
    return {"topology_kl": student_kl, "topology_kl_uniform": uniform_kl}
