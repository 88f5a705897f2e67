"""The YAML schema: one dataclass per section, defaults and rules beside the fields."""
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

VARIANTS = ("released", "paper", "coupled")
ANCHORS = ("none", "detached", "through", "shared")
TOPOLOGY_SOURCES = ("last_block_mean", "every_head")


@dataclass
class BackboneConfig:
    """Where a network comes from: a directory or hub id (`path`), or an architecture with random weights (`config`)."""
    path: Optional[str] = None
    config: Optional[Dict[str, Any]] = None


@dataclass
class EncoderConfig(BackboneConfig):
    num_layers: Optional[int] = None    # keep the first n layers; None keeps all
    patch_size: Optional[int] = None    # resample the patch embedding to this size; None keeps the stored one


@dataclass
class TeacherConfig(BackboneConfig):
    library: str = "transformers"       # transformers | timm
    layers: Optional[List[int]] = None  # layers whose maps are averaged, from 0; None: the last
    image_size: Optional[int] = None    # side of the shorter edge given to the teacher; None: the student's input


@dataclass
class TextEncoderConfig(BackboneConfig):
    library: str = "open_clip"          # open_clip | transformers (sentence encoder: mean pooling)
    context_length: Optional[int] = None  # tokens; None: the encoder's own


@dataclass
class BlockConfig:
    """Overrides of the variant's switches (DESIGN: block variants); None keeps the preset of variant and stage."""
    detach_attention: Optional[bool] = None   # values are gathered through sg(A)
    semantic_anchor: Optional[str] = None     # none | detached | through | shared (values and anchor are one projection)
    isolate_trunk: Optional[bool] = None      # L_topo and L_ITC stop at the block's own projections
    topology_from: Optional[str] = None       # last_block_mean | every_head


@dataclass
class ModelConfig:
    variant: str = "released"           # released | paper | coupled
    block: BlockConfig = field(default_factory=BlockConfig)
    muse_layers: int = 6
    width: int = 512
    heads: int = 8
    latent_dim: int = 32
    semantic_dim: int = 768
    grad_scale: float = 0.5             # backward factor between latent and trunk
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: BackboneConfig = field(default_factory=BackboneConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)


@dataclass
class ExperimentConfig:
    project: str = "muse"
    name: str = "muse"
    output_dir: str = "outputs/muse"
    stage: int = 1                      # 1 topology warmup | 2 semantic injection | 3 synergistic tuning
    init_checkpoint: Optional[str] = None  # the parent: checkpoint directory (or run directory) of the stage before
    allow_foreign_parent: bool = False  # accept a parent of another stage
    resume: bool = True                 # continue from the newest checkpoint in output_dir
    save_every: int = 5000              # steps
    keep_checkpoints: int = 3           # newest checkpoints kept; 0 keeps all
    eval_every: int = 5000              # steps; 0: only at the end
    generate_every: int = 2500          # steps between sample pictures; 0: never
    log_every: int = 50                 # steps
    trackers: List[str] = field(default_factory=list)  # any of tensorboard, wandb


@dataclass
class LossesConfig:
    reconstruction_loss: str = "l2"     # l1 | l2
    reconstruction_weight: float = 1.0
    learn_logvar: bool = False          # adaptive log-variance on the pixel term
    perceptual_loss: str = "lpips-convnext_s-1.0-0.1"  # names and weights, see perceptual_loss.py
    perceptual_weights: Dict[str, str] = field(default_factory=dict)  # network name -> weight file; absent: torchvision's
    perceptual_weight: float = 1.1
    discriminator_weight: float = 0.1
    discriminator_start: int = 1_000_000  # step at which GAN terms begin
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999
    topology_weight: float = 2.0
    itc_weight: float = 0.0


@dataclass
class SourceConfig:
    """One shard source of a mixture: a path, glob, brace range, `pipe:` command, URL, or a list of these."""
    shards: Any = None
    weight: float = 1.0


@dataclass
class DataParams:
    train_shards: Any = None            # str, list of str, or list of {shards, weight}
    eval_shards: Any = None
    num_workers: int = 8                # per process
    shuffle_buffer: int = 2000          # samples
    max_skipped_fraction: float = 0.05  # broken samples tolerated before the run stops


@dataclass
class PreprocessingConfig:
    resize_shorter_edge: int = 224
    crop_size: int = 224
    random_crop: bool = True
    random_flip: bool = True


@dataclass
class DatasetConfig:
    params: DataParams = field(default_factory=DataParams)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)


@dataclass
class OptimizerParams:
    learning_rate: float = 4e-4
    encoder_learning_rate_factor: float = 0.5  # applies where the encoder trains
    discriminator_learning_rate: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4


@dataclass
class OptimizerConfig:
    name: str = "adamw"
    params: OptimizerParams = field(default_factory=OptimizerParams)


@dataclass
class SchedulerParams:
    warmup_steps: int = 2000
    end_lr: float = 1e-5


@dataclass
class SchedulerConfig:
    scheduler: str = "cosine"           # cosine | constant
    params: SchedulerParams = field(default_factory=SchedulerParams)


@dataclass
class TrainingConfig:
    seed: int = 42
    max_train_steps: int = 50_000       # optimizer steps
    per_gpu_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    mixed_precision: str = "bf16"       # no | fp16 | bf16
    enable_tf32: bool = True
    use_ema: bool = True
    ema_decay: float = 0.999
    cache_frozen_features: bool = False  # keep frozen encoder tokens and teacher maps in memory, by sample key
    num_generated_images: int = 8


@dataclass
class EvaluationConfig:
    """What periodic evaluation and scripts/evaluate.py compute, and the weight files of their networks."""
    batch_size: int = 32
    max_images: Optional[int] = None    # None: every evaluation image
    frechet: str = "inception"          # inception (rFID) | efficientnet_lite0 (fd_efficientnet_lite0) | none
    frechet_weights: Optional[str] = None  # None: torch-fidelity's cache
    perceptual: str = "lpips"           # lpips | st_lpips | none
    perceptual_weights: Optional[str] = None


@dataclass
class MuseConfig:
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
