"""What a worker reports at registration: its machine, data sets, models and recipes."""

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
    """A data set in a data root of a worker. `path` is the `data` of a training configuration."""

    model_config = ConfigDict(frozen=True)

    path: Annotated[str, Field(min_length=1)]
    kind: DataKind
    classes: Annotated[
        int | None, Field(ge=0, le=2**53, description="Number of training classes; only of folders")
    ] = None
    images: Annotated[
        dict[str, Annotated[int, Field(ge=0, le=2**53)]],
        Field(description="Image files by split, `train` without splits; only of folders"),
    ] = {}
    complete: Annotated[bool, Field(description="False while files are being counted")] = True


class Recipe(BaseModel):
    """Named defaults of a training configuration."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(min_length=1)]
    config: Annotated[dict[str, Any], Field(description="Fields of a training configuration")]


class WorkerOffers(BaseModel):
    """What a worker reports at registration.

    If a job uses data or models that this worker does not have, another running worker that has
    them gets the job. If there is none, only the job's `needs` determine which worker gets it.
    """

    model_config = ConfigDict(frozen=True)

    version: Annotated[str, Field(description="Version of the package enrich-distill")] = ""
    device: Annotated[str, Field(description="Name of the GPU or processor")] = ""
    device_memory_gb: Annotated[
        float | None, Field(ge=0, allow_inf_nan=False, description="Memory of the GPU in GiB")
    ] = None
    data_roots: Annotated[
        tuple[str, ...],
        Field(description="Folders that jobs may read; if empty, any, and `data` is empty"),
    ] = ()
    data: Annotated[tuple[DataFolder, ...], Field(description="Data sets in `data_roots`")] = ()
    data_complete: Annotated[
        bool, Field(description="False if not all of `data_roots` has been scanned")
    ] = True
    teachers: Annotated[tuple[str, ...], Field(description="Teachers in the local cache")] = ()
    students: Annotated[
        tuple[str, ...],
        Field(description="timm models whose pretrained weights are in the local cache"),
    ] = ()
    trackers: Annotated[
        tuple[str, ...], Field(description="Experiment trackers whose package is installed")
    ] = ()
    weights: Annotated[
        tuple[str, ...], Field(description="Weight files (safetensors) in `data_roots`")
    ] = ()
    recipes: Annotated[tuple[Recipe, ...], Field(description="Presets of `distill train`")] = ()
    offline: Annotated[bool, Field(description="Whether downloads are disabled")] = False
