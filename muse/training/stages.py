"""The three stages of the curriculum, as data (paper, section on progressive training)."""
from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Stage:
    """What a stage freezes, and the stage that its weights come from; the losses are the configuration's."""
    number: int
    name: str
    frozen: Tuple[str, ...]  # submodules and parameters of MUSE_ViT, by released name; everything else trains
    parent: Optional[int]    # the stage whose EMA weights this one starts from; None: pretrained backbones

    def trains(self, name):
        """Whether the parameter of this name trains in this stage."""
        return not any(name == part or name.startswith(part + ".") for part in self.frozen)


STAGES = {
    1: Stage(1, "Topology Warmup", ("encoder", "semantic_projector", "logit_scale"), None),
    2: Stage(2, "Semantic Injection", ("encoder",), 1),
    3: Stage(3, "Synergistic Tuning", (), 2),
}


def get_stage(config):
    """The Stage of a MuseConfig; ValueError where it does not exist or a loss weight has no place in it."""
    number = config.experiment.stage
    if number not in STAGES:
        raise ValueError(f"experiment.stage is {number}: choose one of {', '.join(map(str, STAGES))}")
    stage = STAGES[number]
    if config.losses.itc_weight > 0 and not stage.trains("semantic_projector"):
        raise ValueError(f"losses.itc_weight is {config.losses.itc_weight}, but stage {number} ({stage.name}) freezes "
                         f"the semantic head: set it to 0 or train stage 2")
    return stage
