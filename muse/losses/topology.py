"""Topology loss: the student's attention maps follow the teacher's (paper section 3.2)."""
import torch

from muse.models.topology import resize_map


def topology_loss(maps, teacher, teacher_grid, grid):
    """KL(Psi(teacher) || student) over keys, in nats, averaged over images, queries, heads and maps.

    Args: maps: student maps B x M x N x N each (M = 1: head mean as released; M = heads: every head as in the paper);
    teacher: B x Ns x Ns, rows summing to 1, over `teacher_grid`; grid: the student's (h, w).
    """
    target = resize_map(teacher.float(), teacher_grid, grid).unsqueeze(1)  # B 1 N N
    entropy = torch.special.xlogy(target, target).sum(dim=-1)  # B 1 N
    divergences = [(entropy - (target * torch.log(student.float() + 1e-8)).sum(dim=-1)).mean() for student in maps]
    return torch.stack(divergences).mean()
