"""What a network is, how it learns, and where that is noted down."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from hcs_ray.config.base import ExecutionSection, NonNegativeInt, PositiveInt, Probability, Section

Backbone = Literal["tiny", "resnet18", "resnet50", "convnextv2-atto", "convnextv2-tiny", "dinov2-small"]
Workers = PositiveInt | tuple[PositiveInt, PositiveInt]


class ModelConfig(Section):
    """The network."""

    backbone: Backbone = "resnet18"
    weights: str | None = Field(None, description="none, a local or s3:// folder or file, or a name on a hub")
    dmso_class: bool = Field(True, description="negative controls are a class of their own")
    dropout: Probability = 0.0
    normalization: Literal["batch", "control_anchored"] = Field(
        "batch",
        description="control_anchored: statistics of the plate's negative controls, not of the batch",
    )
    anchor_fields: PositiveInt = Field(
        4, description="control fields a plate that anchor a batch; four times as many when it is used"
    )

    @pydantic.model_validator(mode="after")
    def _normalizable(self) -> ModelConfig:
        if self.normalization == "control_anchored" and self.backbone.startswith(("convnext", "dino")):
            raise ValueError(
                f"normalization control_anchored: backbone {self.backbone} has no batch normalisation; "
                "choose tiny, resnet18 or resnet50, or normalization batch"
            )
        return self


class AugmentConfig(Section):
    """Random changes of a training field, drawn from (seed, epoch, key); zero and false switch one off."""

    flips: bool = True
    quarter_turns: bool = True
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="free rotation, +-")
    intensity: Annotated[float, Field(ge=0, lt=1)] = Field(0.2, description="random gain a channel, +-")
    gamma: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="random exponent a channel, 1 / (1 + gamma) to 1 + gamma"
    )
    noise: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="largest standard deviation of added noise; 1 is the brightness of a plate's range"
    )
    blur_px: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="largest sigma of a gaussian blur, in pixels of the full resolution"
    )


class AdversaryConfig(Section):
    """A head that tells plates or weeks apart, behind a gradient reversal (Ganin et al. 2016)."""

    target: Literal["none", "plate", "batch"] = Field("none", description="batch: the week, in BBBC021")
    fields: Literal["controls", "all"] = Field(
        "controls", description="which fields it sees; of all, it also unlearns the treatments of a week"
    )
    weight: Annotated[float, Field(gt=0)] = Field(0.03, description="of the reversed gradient, when warm")
    warmup: Probability = Field(0.3, description="share of the training over which the weight grows")


class TreatmentHeadConfig(Section):
    """A head that tells treatments (compound x dose) apart: weak labels, as in Caicedo et al. 2018."""

    weight: Annotated[float, Field(ge=0)] = Field(0.0, description="of its loss; 0: no such head")
    fields: Literal["train", "all"] = Field(
        "train", description="all: the pixels of every compound are seen, never the MoA of those held out"
    )


class TrainConfig(ExecutionSection):
    """`hcs-ray train`."""

    execution: ClassVar[frozenset[str]] = frozenset(
        {
            "use_gpu", "threads", "max_failures", "cpus_per_worker", "resources_per_worker",
            "keep_checkpoints", "checkpoint_steps", "log_steps", "max_hours", "wait_minutes", "cache_gb",
            "cache_folder", "tensorboard",
        }
    )  # fmt: skip

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    epochs: PositiveInt = 30
    global_batch: PositiveInt = Field(32, description="fields in an optimizer step, over all workers")
    device_batch: PositiveInt | None = Field(
        None, description="most fields that go through a worker's network at once; gradients are summed"
    )
    sampling: Literal["shuffled", "class_balanced", "plate_balanced", "plate_and_class_balanced"] = Field(
        "shuffled", description="shuffled: every field once an epoch; balanced: as many, drawn by group"
    )
    plates_per_batch: PositiveInt | None = Field(
        None, description="a batch holds fields of about so many plates; none: of any"
    )
    crop_px: PositiveInt = Field(
        512, description="side of the random square crop; smaller fields are used whole"
    )
    downsample: PositiveInt = Field(1, description="mean of blocks of this side, before the network")
    augment: AugmentConfig = AugmentConfig()
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    schedule: Literal["one_cycle", "cosine", "plateau", "constant"] = "one_cycle"
    warmup: Probability = Field(0.0, description="share of the steps over which lr grows; not of one_cycle")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="largest norm of a gradient")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="an exponential mean of the weights is judged and kept, as with 0.999"
    )
    stop_after: PositiveInt | None = Field(
        None, description="end after so many epochs without a better validation score"
    )
    choose: Literal["best", "last"] = Field(
        "best", description="the epoch that is kept: by validation compounds, or a fixed budget"
    )
    moa_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="of the MoA loss; 0: its head learns, and the backbone never sees a MoA"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: bool = Field(True, description="weigh classes by the inverse of their number of fields")
    treatment: TreatmentHeadConfig = TreatmentHeadConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    positive_controls_per_epoch: NonNegativeInt = Field(
        64, description="cap of positive-control fields an epoch"
    )
    precision: Literal["32", "bf16", "fp16"] = "32"
    channels_last: bool = False
    compile: bool = Field(False, description="torch.compile the network")
    checkpoint_steps: PositiveInt | None = Field(
        None, description="a checkpoint after so many steps, too, not only after an epoch"
    )
    keep_checkpoints: PositiveInt = Field(2, description="the best so many, and the newest")
    workers: Workers = Field(
        2, description="ranks, or [min, max] of an elastic run; each normalises batches by its own share"
    )
    use_gpu: bool = False
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    resources_per_worker: dict[str, float] = Field(
        default_factory=dict, description="Ray's other resources, as in {accelerator_type:H200: 0.001}"
    )
    threads: PositiveInt = Field(2, description="threads that read and decode, a worker")
    cache_gb: Annotated[float, Field(ge=0)] = Field(
        0.0, description="local disk that may hold members read from S3, shared by a node's workers"
    )
    cache_folder: str | None = Field(None, description="where; none: a temporary folder of the node")
    max_failures: NonNegativeInt = 2
    max_hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="end with a checkpoint after so long; run again to go on"
    )
    wait_minutes: Annotated[float, Field(gt=0)] = Field(
        60.0, description="give up where workers have not started after so long"
    )
    log_steps: PositiveInt = Field(10, description="figures of a step are noted every so many")
    tensorboard: bool = Field(False, description="write event files for TensorBoard, too")

    @property
    def fewest_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"workers [{self.fewest_workers}, {self.most_workers}]: the first is the larger")
        if self.fewest_workers < self.most_workers and self.max_failures == 0:
            raise ValueError("elastic workers need max_failures of at least 1")
        if self.precision == "fp16" and not self.use_gpu:
            raise ValueError("precision fp16 needs use_gpu: true; on a CPU take bf16")
        for name, amount in self.resources_per_worker.items():
            if name in ("CPU", "GPU") or amount <= 0:
                raise ValueError(
                    f"resources_per_worker: {name}: {amount:g}: amounts above 0 of other resources than "
                    "CPU (cpus_per_worker) and GPU (use_gpu)"
                )
        if self.moa_weight == 0 and self.treatment.weight == 0:
            raise ValueError("moa_weight 0 leaves the backbone nothing to learn; set treatment.weight")
        return self


class WandbConfig(Section):
    """Weights & Biases. The key comes from the environment (WANDB_API_KEY), never from here."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "hcs_ray"
    entity: str | None = None
