"""The YAML schema: one dataclass per section, defaults and rules beside the fields.

`problems()` of a section yields one sentence per broken rule, each saying what to change.
"""
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional

VARIANTS = ("released", "paper", "coupled")
ANCHORS = ("none", "detached", "through", "shared")
TOPOLOGY_SOURCES = ("last_block_mean", "every_head")

# Other spellings of the same setting in published files of this family.
ALIASES = {
    "experiment.init_weight": "experiment.init_checkpoint",
    "losses.lecam_regularization_weight": "losses.lecam_weight",
    "dataset.params.train_shards_path_or_url": "dataset.params.train_shards",
    "dataset.params.eval_shards_path_or_url": "dataset.params.eval_shards",
    "dataset.params.num_workers_per_gpu": "dataset.params.num_workers",
    "training.enable_wandb": "experiment.trackers",
}
# Keys whose value may be written in another form.
CONVERSIONS = {
    "training.enable_wandb": lambda enabled: ["wandb"] if enabled else [],
    "training.mixed_precision": lambda value: "no" if value is False else value,  # YAML reads a bare `no` as false
}
# Keys of published files that have no meaning here, and why. They are warned about once, never an error.
OBSOLETE = {
    "experiment.max_train_examples": "an epoch's length comes from the shards' index",
    "experiment.log_grad_norm_every": "the gradient norm is logged with the losses",
    "experiment.logging_dir": "logs are written to experiment.output_dir",
    "losses.quantizer_weight": "the latent is continuous, there is no quantizer",
    "losses.commitment_cost": "the latent is continuous, there is no quantizer",
    "losses.discriminator_factor": "multiply losses.discriminator_weight by it",
    "dataset.params.pin_memory": "decided by the device",
    "dataset.params.persistent_workers": "workers always persist",
    "lr_scheduler.params.learning_rate": "the peak is optimizer.params.learning_rate",
}


def _one_of(key: str, value: Any, allowed: tuple) -> Iterator[str]:
    if value not in allowed:
        yield f"{key} is {value!r}; use one of {', '.join(map(str, allowed))}"


def _at_least(minimum: float, prefix: str, section: Any, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(section, name)
        if value is not None and not value >= minimum:
            yield f"{prefix}.{name} is {value}; it must be at least {minimum}"


def _above_zero(prefix: str, section: Any, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(section, name)
        if value is not None and not value > 0:
            yield f"{prefix}.{name} is {value}; it must be above 0"


def _fraction(prefix: str, section: Any, *names: str) -> Iterator[str]:
    for name in names:
        if not 0 <= getattr(section, name) <= 1:
            yield f"{prefix}.{name} is {getattr(section, name)}; it must lie between 0 and 1"


@dataclass
class BackboneConfig:
    """Where a network comes from: a directory or hub id (`path`), or an architecture with random weights (`config`)."""
    path: Optional[str] = None          # directory or hub id with pretrained weights
    config: Optional[Dict[str, Any]] = None  # architecture, in the words of the network's own config.json

    @property
    def given(self) -> bool:
        """Whether the section names a network at all."""
        return self.path is not None or self.config is not None

    def problems(self, prefix: str) -> Iterator[str]:
        if self.path is not None and self.config is not None:
            yield f"{prefix} has both path and config; keep path for pretrained weights or config for random ones"


@dataclass
class EncoderConfig(BackboneConfig):
    num_layers: Optional[int] = None    # keep the first n layers; null keeps all
    patch_size: Optional[int] = None    # resample the patch embedding to this size; null keeps the stored one

    def problems(self, prefix: str) -> Iterator[str]:
        yield from super().problems(prefix)
        yield from _at_least(1, prefix, self, "num_layers", "patch_size")


@dataclass
class TeacherConfig(BackboneConfig):
    library: str = "transformers"       # transformers | timm
    layers: Optional[List[int]] = None  # layers whose maps are averaged, from 0; null: the last
    image_size: Optional[int] = None    # side of the shorter edge given to the teacher; null: the student's input

    def problems(self, prefix: str) -> Iterator[str]:
        yield from super().problems(prefix)
        yield from _one_of(f"{prefix}.library", self.library, ("transformers", "timm"))
        yield from _at_least(1, prefix, self, "image_size")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            yield f"{prefix}.layers is {self.layers}; list layers from 0, or null for the last"


@dataclass
class TextEncoderConfig(BackboneConfig):
    library: str = "open_clip"          # open_clip | transformers (sentence encoder: mean pooling)
    context_length: Optional[int] = None  # tokens; null: the encoder's own

    def problems(self, prefix: str) -> Iterator[str]:
        yield from super().problems(prefix)
        yield from _one_of(f"{prefix}.library", self.library, ("open_clip", "transformers"))
        yield from _at_least(1, prefix, self, "context_length")


@dataclass
class BlockConfig:
    """Overrides of the variant's switches (README, block variants); None keeps the preset of variant and stage."""
    detach_attention: Optional[bool] = None   # values are gathered through sg(A)
    semantic_anchor: Optional[str] = None     # none | detached | through | shared (values are the anchor's projection)
    isolate_trunk: Optional[bool] = None      # L_topo and L_ITC stop at the block's own projections
    topology_from: Optional[str] = None       # last_block_mean | every_head

    def problems(self) -> Iterator[str]:
        yield from _one_of("model.block.semantic_anchor", self.semantic_anchor, (None, *ANCHORS))
        yield from _one_of("model.block.topology_from", self.topology_from, (None, *TOPOLOGY_SOURCES))


@dataclass
class ModelConfig:
    variant: str = "released"           # released | paper | coupled
    block: BlockConfig = field(default_factory=BlockConfig)
    muse_layers: int = 6                # Synergistic Blocks
    width: int = 512                    # of the connector
    heads: int = 8
    latent_dim: int = 32                # channels of the latent
    semantic_dim: int = 768             # width of the text encoder's embedding
    grad_scale: float = 0.5             # backward factor between latent and trunk
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: BackboneConfig = field(default_factory=BackboneConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)

    def problems(self) -> Iterator[str]:
        yield from _one_of("model.variant", self.variant, VARIANTS)
        yield from _at_least(1, "model", self, "muse_layers", "width", "heads", "latent_dim", "semantic_dim")
        yield from _at_least(0, "model", self, "grad_scale")
        if self.heads >= 1 and self.width % (2 * self.heads):
            yield (f"model.width {self.width} over model.heads {self.heads} is no even width per head, which rotary "
                   "positions need; change one of them")
        yield from self.block.problems()
        for name in ("encoder", "decoder", "teacher", "text_encoder"):
            yield from getattr(self, name).problems(f"model.{name}")


@dataclass
class ExperimentConfig:
    project: str = "muse"               # wandb project
    name: str = "muse"                  # run name on trackers
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

    def problems(self) -> Iterator[str]:
        yield from _one_of("experiment.stage", self.stage, (1, 2, 3))
        yield from _at_least(1, "experiment", self, "save_every", "log_every")
        yield from _at_least(0, "experiment", self, "keep_checkpoints", "eval_every", "generate_every")
        for tracker in self.trackers:
            yield from _one_of("experiment.trackers", tracker, ("tensorboard", "wandb"))


@dataclass
class LossesConfig:
    reconstruction_loss: str = "l2"     # l1 | l2
    reconstruction_weight: float = 1.0
    learn_logvar: bool = False          # adaptive log-variance on the pixel term
    perceptual_loss: str = "lpips-convnext_s-1.0-0.1"  # names and weights, see perceptual_loss.py
    perceptual_weights: Dict[str, str] = field(default_factory=dict)  # network -> weight file; absent: torchvision's
    perceptual_weight: float = 1.1
    discriminator_weight: float = 0.1
    discriminator_start: int = 1_000_000  # step at which GAN terms begin
    discriminator_channels: int = 128   # width of its first convolution; a multiple of 32
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999          # of the running means of the discriminator's logits
    topology_weight: float = 2.0
    itc_weight: float = 0.0

    def problems(self) -> Iterator[str]:
        yield from _one_of("losses.reconstruction_loss", self.reconstruction_loss, ("l1", "l2"))
        yield from _at_least(0, "losses", self, "reconstruction_weight", "perceptual_weight", "discriminator_weight",
                             "discriminator_start", "lecam_weight", "topology_weight", "itc_weight")
        yield from _fraction("losses", self, "lecam_decay")
        if self.discriminator_channels < 32 or self.discriminator_channels % 32:
            yield (f"losses.discriminator_channels is {self.discriminator_channels}: use a multiple of 32, its "
                   "normalisation has 32 groups")


@dataclass
class DataParams:
    train_shards: Any = None            # path, glob, brace range, pipe:, URL; a list; or a list of {shards, weight}
    eval_shards: Any = None             # the same without weights
    num_workers: int = 8                # per process
    shuffle_buffer: int = 2000          # samples
    max_skipped_fraction: float = 0.05  # broken samples tolerated before the run stops

    def problems(self) -> Iterator[str]:
        yield from _at_least(0, "dataset.params", self, "num_workers")
        yield from _at_least(1, "dataset.params", self, "shuffle_buffer")
        yield from _fraction("dataset.params", self, "max_skipped_fraction")


@dataclass
class PreprocessingConfig:
    resize_shorter_edge: int = 224      # pixels
    crop_size: int = 224                # pixels, square
    random_crop: bool = True
    random_flip: bool = True

    def problems(self) -> Iterator[str]:
        yield from _at_least(1, "dataset.preprocessing", self, "resize_shorter_edge", "crop_size")
        if self.crop_size > self.resize_shorter_edge:
            yield (f"dataset.preprocessing.crop_size {self.crop_size} is larger than resize_shorter_edge "
                   f"{self.resize_shorter_edge}; raise resize_shorter_edge or lower crop_size")


@dataclass
class DatasetConfig:
    params: DataParams = field(default_factory=DataParams)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)


@dataclass
class OptimizerParams:
    learning_rate: float = 4e-4         # peak
    encoder_learning_rate_factor: float = 0.5  # applies where the encoder trains
    discriminator_learning_rate: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4

    def problems(self) -> Iterator[str]:
        yield from _above_zero("optimizer.params", self, "learning_rate", "discriminator_learning_rate")
        yield from _at_least(0, "optimizer.params", self, "encoder_learning_rate_factor", "weight_decay")
        yield from _fraction("optimizer.params", self, "beta1", "beta2")


@dataclass
class OptimizerConfig:
    name: str = "adamw"
    params: OptimizerParams = field(default_factory=OptimizerParams)

    def problems(self) -> Iterator[str]:
        yield from _one_of("optimizer.name", self.name, ("adamw",))
        yield from self.params.problems()


@dataclass
class SchedulerParams:
    warmup_steps: int = 2000            # linear, optimizer steps
    end_lr: float = 1e-5                # reached at the last step of the cosine


@dataclass
class SchedulerConfig:
    scheduler: str = "cosine"           # cosine | constant
    params: SchedulerParams = field(default_factory=SchedulerParams)

    def problems(self) -> Iterator[str]:
        yield from _one_of("lr_scheduler.scheduler", self.scheduler, ("cosine", "constant"))
        yield from _at_least(0, "lr_scheduler.params", self.params, "warmup_steps", "end_lr")


@dataclass
class TrainingConfig:
    seed: int = 42
    max_train_steps: int = 50_000       # optimizer steps
    per_gpu_batch_size: int = 32        # images per process and accumulation step
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0          # gradients are clipped to this norm
    mixed_precision: str = "bf16"       # no | fp16 | bf16
    enable_tf32: bool = True
    use_ema: bool = True
    ema_decay: float = 0.999
    cache_frozen_features: bool = False  # keep frozen encoder tokens and teacher maps in memory, by sample key
    num_generated_images: int = 8       # originals and reconstructions in a sample picture

    def problems(self) -> Iterator[str]:
        yield from _at_least(1, "training", self, "max_train_steps", "per_gpu_batch_size",
                             "gradient_accumulation_steps")
        yield from _at_least(0, "training", self, "seed", "num_generated_images")
        yield from _above_zero("training", self, "max_grad_norm")
        yield from _one_of("training.mixed_precision", self.mixed_precision, ("no", "fp16", "bf16"))
        yield from _fraction("training", self, "ema_decay")


@dataclass
class EvaluationConfig:
    """What periodic evaluation and scripts/evaluate.py compute, and the weight files of their networks."""
    batch_size: int = 32
    max_images: Optional[int] = None    # null: every evaluation image
    frechet: str = "inception"          # inception (rFID) | efficientnet_lite0 (fd_efficientnet_lite0) | none
    frechet_weights: Optional[str] = None  # null: torch-fidelity's cache
    perceptual: str = "lpips"           # lpips | st_lpips | none
    perceptual_weights: Optional[str] = None  # null: the network's own library cache

    def problems(self) -> Iterator[str]:
        yield from _at_least(1, "evaluation", self, "batch_size", "max_images")
        yield from _one_of("evaluation.frechet", self.frechet, ("inception", "efficientnet_lite0", "none"))
        yield from _one_of("evaluation.perceptual", self.perceptual, ("lpips", "st_lpips", "none"))


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

    def problems(self) -> Iterator[str]:
        """One sentence per broken rule, each naming its key and what to change."""
        for section in (self.experiment, self.model, self.losses, self.dataset.params, self.dataset.preprocessing,
                        self.optimizer, self.lr_scheduler, self.training, self.evaluation):
            yield from section.problems()
        if self.lr_scheduler.scheduler == "cosine" and (
                self.lr_scheduler.params.end_lr > self.optimizer.params.learning_rate):
            yield (f"lr_scheduler.params.end_lr {self.lr_scheduler.params.end_lr} is above "
                   f"optimizer.params.learning_rate {self.optimizer.params.learning_rate}; lower end_lr")

    def training_problems(self) -> Iterator[str]:
        """Rules that only training must keep; a checkpoint may be used without them."""
        if self.losses.itc_weight > 0 and not self.model.text_encoder.given:
            yield ("losses.itc_weight is above 0 but model.text_encoder names no network; set its path or config, or "
                   "losses.itc_weight=0")
        if self.losses.topology_weight > 0 and not self.model.teacher.given:
            yield ("losses.topology_weight is above 0 but model.teacher names no network; set its path or config, or "
                   "losses.topology_weight=0")
        if self.training.cache_frozen_features and self.experiment.stage == 3:
            yield ("training.cache_frozen_features needs a frozen encoder, and stage 3 trains it; set it to false")
        if self.training.cache_frozen_features and self.dataset.preprocessing.random_crop:
            yield ("training.cache_frozen_features needs the same pixels each time a sample comes; set "
                   "dataset.preprocessing.random_crop to false (flips may stay)")
