"""The tokenizer, its backbones, teachers and loss networks."""
from muse.models.muse_vit import MUSE_ViT, MuseOutput, SynergisticBlock

__all__ = ["MUSE_ViT", "MuseOutput", "SynergisticBlock"]
