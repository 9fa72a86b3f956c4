"""What a worker has: its machine, data sets, models and recipes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DataKind = Literal[
    "split folders",
    "class folders",
    "list",
    "shards",
    "Hugging Face dataset",
    "COCO export",
    "YOLO export",
]


class DataFolder(BaseModel):
    """A data set below a worker's data roots, as `data` of a training configuration names it."""

    model_config = ConfigDict(frozen=True)

    path: Annotated[str, Field(min_length=1)]
    kind: DataKind
    classes: Annotated[
        int | None, Field(ge=0, le=2**53, description="Of folders: class folders of the training")
    ] = None
    images: Annotated[
        dict[str, Annotated[int, Field(ge=0, le=2**53)]],
        Field(description="Of folders: image files by split; without splits under `train`"),
    ] = {}
    complete: Annotated[bool, Field(description="False: not all files are counted yet")] = True


class Recipe(BaseModel):
    """Named defaults of a training configuration."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(min_length=1)]
    config: Annotated[dict[str, Any], Field(description="Fields of a training configuration")]


class WorkerOffers(BaseModel):
    """What a worker says it has.

    A job that this worker lacks something for is left to another running worker that has it. Where
    there is none, only a job's `needs` decide who gets it.
    """

    model_config = ConfigDict(frozen=True)

    version: Annotated[str, Field(description="Of the package enrich-distill")] = ""
    device: Annotated[str, Field(description="Name of the GPU, or of the processor")] = ""
    device_memory_gb: Annotated[
        float | None, Field(ge=0, allow_inf_nan=False, description="Memory of the GPU in GiB")
    ] = None
    data_roots: Annotated[
        tuple[str, ...],
        Field(description="Folders that jobs may read; none: any, and `data` is not known"),
    ] = ()
    data: Annotated[tuple[DataFolder, ...], Field(description="Data sets below `data_roots`")] = ()
    data_complete: Annotated[
        bool, Field(description="False: the roots hold more than was looked at so far")
    ] = True
    teachers: Annotated[tuple[str, ...], Field(description="Teachers that need no download")] = ()
    students: Annotated[
        tuple[str, ...], Field(description="timm models whose trained weights need no download")
    ] = ()
    trackers: Annotated[
        tuple[str, ...], Field(description="Experiment trackers whose package is installed")
    ] = ()
    weights: Annotated[
        tuple[str, ...], Field(description="Weight files (safetensors) below `data_roots`")
    ] = ()
    recipes: Annotated[tuple[Recipe, ...], Field(description="Presets of `distill train`")] = ()
    offline: Annotated[bool, Field(description="Whether downloads are switched off")] = False
