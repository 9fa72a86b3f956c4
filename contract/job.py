"""A training job: its configuration, its states and a worker's time-limited claim on it."""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from contract.release import Release

TEACHER_SCHEMES = ("hf-hub", "local-dir")
CLASSIFIER_ARTIFACT: Final = "classifier.zip"  # the classifier folder of a job


def _check_teacher(name: str) -> str:
    scheme, colon, _ = name.partition(":")
    if colon and scheme not in TEACHER_SCHEMES:
        raise ValueError(
            f"a teacher is NAME@TAG of open_clip, hf-hub:ORGANISATION/NAME or local-dir:FOLDER, "
            f"not {scheme!r}"
        )
    return name


def _check_student(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError("a student is the plain name of a timm model, such as resnet18")
    return name


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("a device is auto, cpu, cuda, cuda:0 or mps")
    return name


def _split_commas(value: object) -> object:
    """Split text such as `tensorboard, mlflow`, as entered in forms and on the command line."""
    if isinstance(value, str):
        return [name for part in value.split(",") if (name := part.strip())]
    return value


Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
Precision = Literal["auto", "float32", "bfloat16"]
PixelMode = Literal["auto", "cached", "streamed"]
TextStrategy = Literal["name", "name+description", "attributes", "ensemble", "captions"]
TestViews = Literal["whole", "centre", "ten-crop"]


class LossWeights(BaseModel):
    """Weight of each loss in the sum; 0 disables a loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cls: Annotated[
        float,
        Field(
            ge=0,
            description="L_cls: classify by the texts; lower it to follow the teacher more closely",
        ),
    ] = 1.0
    mse: Annotated[
        float,
        Field(ge=0, description="L_mse: match the teacher's features; raise it for unseen classes"),
    ] = 1.0
    mse_unnormalised: Annotated[float, Field(ge=0, description="L_mse of raw features")] = 0.0
    im_cst: Annotated[
        float, Field(ge=0, description="L_im-cst: contrast with the teacher's image features")
    ] = 1.0
    im_cst_distance: Annotated[
        float, Field(ge=0, description="L_im-cst with distances, as printed in the paper")
    ] = 0.0
    vlprox: Annotated[
        float, Field(ge=0, description="L_vlprox: match the teacher's probabilities of close texts")
    ] = 1.0
    cap: Annotated[float, Field(ge=0, description="L_cap: match captions; needs `captions`")] = 0.0


LEARNING_RATES = {"muon": 0.02, "adamw": 0.002, "sgd": 0.05}  # of a CNN from scratch
TRANSFORMERS = re.compile(r"vit|deit|swin|beit|^eva|cait|^pit_|former|mixer|volo|twins|xcit")


def default_learning_rate(values: dict[str, Any]) -> float:
    """The default learning rate for the student, initial weights and optimiser of a config.

    `values` are the fields of a `TrainConfig`. Transformers and pretrained weights use lower rates.
    """
    rate = LEARNING_RATES.get(values.get("optimiser", ""), LEARNING_RATES["muon"])
    is_trained = values.get("pretrained") or values.get("weights") is not None
    is_transformer = TRANSFORMERS.search(values.get("student", ""))
    return rate / 10 if is_trained or is_transformer else rate


class TrainConfig(BaseModel):
    """All settings of a training run, for the REST interface, the TOML file and the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[
        str,
        Field(
            description="Folder with one folder per class, or with train/ and optionally "
            "val_on_train/ (validation) and val/ (unseen classes); or a list (CSV, TSV, JSONL, "
            "Parquet), WebDataset shards, a COCO or YOLO export or a Hugging Face dataset "
            "(folder or hf:NAME)"
        ),
    ]
    teacher: Annotated[
        str,
        AfterValidator(_check_teacher),
        Field(description="open_clip model: 'ViT-L-14@openai', 'hf-hub:…' or 'local-dir:…'"),
    ]
    student: Annotated[
        str, AfterValidator(_check_student), Field(description="Any timm model name")
    ] = "resnet18"
    pretrained: Annotated[StrictBool, Field(description="Start from timm's pretrained weights")] = (
        False
    )
    weights: Annotated[
        str | None,
        Field(description="Start from this safetensors file instead, with timm's parameter names"),
    ] = None
    teacher_views: Annotated[
        int,
        Field(
            ge=0,
            le=256,
            description="Stored augmented views per image, used by student and teacher; 0: the "
            "teacher encodes only the unaugmented image",
        ),
    ] = 0
    text_strategy: Annotated[
        TextStrategy,
        Field(description="Texts of the release used for the text features of a class"),
    ] = "name+description"
    captions: Annotated[
        str | None,
        Field(
            description="JSONL file, relative to `data`, one {image, caption} per line, for L_cap"
        ),
    ] = None
    losses: Annotated[LossWeights, Field(description="Weight of each loss")] = LossWeights()
    adaptive_weights: Annotated[
        StrictBool, Field(description="Learn the weights of the losses, starting from `losses`")
    ] = False
    temperature: Annotated[
        float, Field(gt=0, description="Temperature of the softmax in the losses")
    ] = 0.07
    vlprox_k: Annotated[int, Field(ge=1, description="Texts compared by L_vlprox")] = 256
    vlprox_filter: Annotated[
        StrictBool, Field(description="L_vlprox skips images that the teacher misclassifies")
    ] = True
    image_size: Annotated[
        int, Field(ge=16, le=1024, description="Side of the square images in pixels")
    ] = 64
    output_stride: Annotated[
        Literal[8, 16, 32],
        Field(
            description="Stride in pixels of a CNN's last feature map; lower is more accurate on "
            "small images and slower"
        ),
    ] = 32
    test_views: Annotated[
        TestViews,
        Field(
            description="Evaluation views of the student: the whole image, a centre crop at the "
            "scale of the training crops, or ten crops, which are more accurate and ten times as "
            "slow"
        ),
    ] = "centre"
    epochs: Annotated[int, Field(ge=1, description="Passes over the training images")] = 12
    batch_size: Annotated[int, Field(ge=2, description="Images per batch and process")] = 128
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            description="Batches per optimiser step; the contrastive loss is per batch",
        ),
    ] = 1
    optimiser: Annotated[
        Literal["adamw", "sgd", "muon"],
        Field(description="muon needs fewer epochs; its steps are slower"),
    ] = "muon"
    learning_rate: Annotated[
        float,
        Field(
            gt=0,
            description="Default by optimiser: muon 0.02, adamw 0.002, sgd 0.05; a tenth of it for "
            "transformers and pretrained weights",
        ),
    ] = Field(default_factory=default_learning_rate)
    weight_decay: Annotated[float, Field(ge=0, description="Not applied to biases and norms")] = (
        0.01
    )
    schedule: Annotated[
        Literal["cosine", "steps", "one-cycle"],
        Field(description="Learning-rate schedule; one-cycle has its own warm-up"),
    ] = "cosine"
    warmup_epochs: Annotated[
        float, Field(ge=0, description="Epochs in which the learning rate rises from 0")
    ] = 1.0
    device: Annotated[
        str,
        AfterValidator(_check_device),
        Field(description="Device of teacher and student: auto, cpu, cuda, cuda:1 or mps"),
    ] = "auto"
    precision: Annotated[
        Precision,
        Field(description="Precision of teacher and student; auto: bfloat16 if the device has it"),
    ] = "auto"
    pixels: Annotated[
        PixelMode,
        Field(
            description="cached: decode all images to a file before the first step; streamed: "
            "decode images when needed, in bounded memory; auto: cached if they take at most half "
            "of the memory and of the free disk. Both train the same student"
        ),
    ] = "auto"
    threads: Annotated[
        int, Field(ge=0, le=1024, description="CPU threads; 0: PyTorch's default")
    ] = 0
    cpu_kernels: Annotated[
        StrictBool,
        Field(description="Faster replacements of some torch CPU kernels; no effect on GPUs"),
    ] = True
    seed: Annotated[int, Field(description="Seed of initial weights, batches and augmentation")] = 0
    export: Annotated[
        StrictBool,
        Field(description="Export a classifier folder, which runs without torch, at the end"),
    ] = True
    forecast: Annotated[
        StrictBool,
        Field(
            description="Forecast the accuracy on classes that are added later, by a second "
            "training for half the epochs without a quarter of the seen classes"
        ),
    ] = False
    track: Annotated[
        tuple[Tracker, ...],
        BeforeValidator(_split_commas),
        Field(description="Experiment trackers: tensorboard, mlflow, wandb, trackio"),
    ] = ()

    @model_validator(mode="after")
    def _check_captions(self) -> Self:
        if self.losses.cap and self.captions is None:
            raise ValueError(
                "losses.cap has a weight, but there are no captions: set `captions` to their JSONL "
                "file, or losses.cap to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_initial_weights(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError(
                "a student starts from timm's weights or from a file: set only one of "
                "`pretrained` and `weights`"
            )
        return self


class JobState(StrEnum):
    """queued → leased → running → succeeded | failed | cancelled."""

    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Needs(BaseModel):
    """Requirements that a worker has to meet to get a job."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gpu: StrictBool = False
    memory_gb: Annotated[float, Field(ge=0, description="Main memory, in GiB")] = 0


class JobCreate(BaseModel):
    """A new job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release_id: Annotated[int | None, Field(ge=1, le=2**31 - 1)] = None
    after_run: Annotated[
        int | None,
        Field(
            ge=1, le=2**31 - 1, description="Id of a run: use the release of its texts when it ends"
        ),
    ] = None
    config: TrainConfig
    priority: Annotated[int, Field(ge=-100, le=100, description="Higher runs first")] = 0
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    needs: Needs = Needs()
    shrink_batch: Annotated[
        StrictBool, Field(description="When out of memory, retry with half the batch size")
    ] = False

    @model_validator(mode="after")
    def _check_release(self) -> Self:
        if (self.release_id is None) == (self.after_run is None):
            raise ValueError("give release_id, or after_run for the release of a run")
        return self


class Job(BaseModel):
    """A training job."""

    model_config = ConfigDict(frozen=True)

    id: int
    release_id: int | None  # None while the run that it waits for has not succeeded
    release_hash: str | None
    after_run: int | None = None
    config: TrainConfig
    priority: int
    needs: Needs = Needs()
    shrink_batch: bool = False
    state: JobState
    attempts: int
    max_attempts: int
    cancel_requested: bool
    worker: str | None
    lease_expires_at: datetime | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class QueuedJob(Job):
    """A job that was just queued."""

    warnings: Annotated[
        tuple[str, ...], Field(description="Requirements that no running worker meets")
    ] = ()


class Lease(BaseModel):
    """A worker's time-limited claim on a job.

    `fence` is a random fencing token, new for each claim. Every request of the worker about the job
    includes it, and requests with the token of an earlier claim are rejected.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    release: Release
    fence: str
    seconds: Annotated[
        float, Field(description="Duration of the lease from its start or last renewal")
    ]
    expires_at: datetime  # by the service's clock
