"""The report of a training job: the measured effect of the enrichment.

Accuracies are percent (0–100), cosines lie in [−1, 1].
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.job import TrainConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


SplitName = Literal["train", "seen", "unseen"]


class SplitCount(_Frozen):
    """How many images one split has, in all and in its smallest and largest class."""

    split: SplitName
    images: int
    classes: int
    fewest: int
    most: int
    held_out: Annotated[
        bool, Field(description="Taken from training, where there are no validation images")
    ] = False


class Preflight(_Frozen):
    """Checks before the first step."""

    splits: tuple[SplitCount, ...]
    unreadable: Annotated[tuple[str, ...], Field(description="Images that cannot be read")]
    without_text: Annotated[tuple[str, ...], Field(description="Keys of classes without text")]
    teacher_sample: Annotated[
        int, Field(description="Seen images that the teacher was evaluated on")
    ]
    teacher_top1: Annotated[
        float | None, Field(description="Percent; null if it was not evaluated")
    ]
    chance: Annotated[float, Field(description="Accuracy of guessing, percent")]


class Accuracy(_Frozen):
    """Accuracy of one model against one text bank on one split."""

    model: Literal["teacher", "student"]
    text: Annotated[str, Field(description="Text strategy, e.g. 'name' or 'name+description'")]
    split: Literal["seen", "unseen"]
    top1: Annotated[float, Field(description="Percent of images")]
    mean_per_class: Annotated[float, Field(description="Mean over classes of top-1, percent")]
    images: int
    classes: int


class JointAccuracy(_Frozen):
    """Accuracy where seen and unseen classes compete for each image (generalised zero-shot).

    Accuracies are top-1 in percent of images.
    """

    model: Literal["teacher", "student"]
    text: Annotated[str, Field(description="Text strategy, e.g. 'name' or 'name+description'")]
    bias: Annotated[float, Field(description="Taken from the cosines of seen classes")]
    seen: float
    unseen: float
    harmonic_mean: Annotated[float, Field(description="Of both, percent")]
    best_harmonic_mean: Annotated[
        float, Field(description="With the best bias, which needs unseen images to be known")
    ]
    ausuc: Annotated[
        float, Field(description="Area under the curve of both over all biases, 0 to 1")
    ]
    classes: int


class ReliabilityBin(_Frozen):
    """The images whose best probability lies in one of equally wide bins; none is empty."""

    images: int
    confidence: Annotated[float, Field(description="Mean probability of the best class, 0 to 1")]
    accuracy: Annotated[float, Field(description="Share of them that are right, 0 to 1")]


class UnknownScore(_Frozen):
    """How well a score tells images of seen classes from images of unseen ones."""

    score: Annotated[
        str, Field(description="cosine, softmax, normalised; the first two also with look-alikes")
    ]
    auroc: Annotated[float, Field(description="0 to 1")]
    fpr_at_95_tpr: Annotated[
        float, Field(description="Unseen images that pass where 95 % of seen ones do, percent")
    ]


class Calibration(_Frozen):
    """How a student's cosines become probabilities, and which images are of no class.

    Probabilities are softmax((cosine − seen_bias · seen) / temperature). All but the figures is
    fitted on validation images of seen classes.
    """

    temperature: Annotated[float, Field(gt=0)]
    seen_bias: Annotated[float, Field(description="Taken from the cosines of seen classes")] = 0.0
    text_photos: Annotated[
        float, Field(gt=0, description="A class's text counts as much as so many photos of it")
    ] = 1.0
    ece_before: Annotated[
        float | None, Field(description="Expected calibration error, percent; the training's T")
    ] = None
    ece_after: Annotated[float | None, Field(description="Percent, cross-fitted")] = None
    reliability_before: tuple[ReliabilityBin, ...] = ()
    reliability_after: Annotated[
        tuple[ReliabilityBin, ...], Field(description="Cross-fitted, as ece_after")
    ] = ()
    unknown_threshold: Annotated[
        float | None, Field(description="Images with a lower best cosine are unknown")
    ] = None
    unknown_auroc: Annotated[
        float | None,
        Field(description="AUROC of seen against unseen images by the best cosine, 0 to 1"),
    ] = None
    unknown_fpr_at_95_tpr: Annotated[
        float | None, Field(description="Unseen images above the threshold, percent")
    ] = None
    unknown_scores: Annotated[
        tuple[UnknownScore, ...], Field(description="That and other scores; empty without unseen")
    ] = ()
    look_alikes_reject_seen: Annotated[
        float | None, Field(description="Seen images most like a look-alike, percent")
    ] = None
    look_alikes_reject_unseen: Annotated[
        float | None, Field(description="Unseen images most like a look-alike, percent")
    ] = None
    threshold_rejects_unseen: Annotated[
        float | None,
        Field(description="The same by a cosine threshold that rejects as many seen images"),
    ] = None


class ForecastValue(_Frozen):
    """An expected accuracy in percent, with an interval of 95 %."""

    value: float
    low: float
    high: float


class ForecastPoint(_Frozen):
    """What to expect of new classes, known from their texts alone, by how many there are."""

    classes: Annotated[int, Field(description="New classes")]
    extrapolated: Annotated[bool, Field(description="More than were left out of the rehearsal")]
    alone: Annotated[ForecastValue, Field(description="Images of new classes, among these")]
    joint_seen: Annotated[ForecastValue, Field(description="Images of seen classes, among all")]
    joint_unseen: Annotated[ForecastValue, Field(description="Images of new classes, among all")]
    joint_harmonic_mean: Annotated[ForecastValue, Field(description="Of the last two")]


class Forecast(_Frozen):
    """How well classes that come later will be recognised.

    From a rehearsal: a shorter training without some of the seen classes, which are new to it.
    """

    left_out: Annotated[int, Field(description="Seen classes that the rehearsal was not shown")]
    images: Annotated[int, Field(description="Validation images of these")]
    epochs: Annotated[int, Field(description="Of the rehearsal")]
    rehearsal_top1: Annotated[
        float, Field(description="Of the rehearsal on the seen classes it was shown, percent")
    ]
    student_top1: Annotated[float, Field(description="Of the student on the same, percent")]
    points: tuple[ForecastPoint, ...]


class ConfusablePair(_Frozen):
    """Two classes whose texts lie close together."""

    a: str
    b: str
    cosine: float


class Imitation(_Frozen):
    """How closely the student's image features follow the teacher's on one split.

    The metrics of Li et al. (ICCV 2023): M_rel (Eq. 4), M_neigh (Eq. 5), M_vlalign (Eq. 7).
    """

    split: SplitName
    images: Annotated[int, Field(description="Of a very large split, an evenly spaced part")]
    m_rel: Annotated[float, Field(description="0 to 1, higher is better")]
    m_neigh: Annotated[
        float | None, Field(description="0 to 1, higher is better; null for a single image")
    ]
    m_neigh_k: Annotated[int, Field(description="Neighbours compared")]
    m_vlalign: Annotated[float, Field(description="Reversed pairs of texts, lower is better")]
    m_vlalign_normalised: Annotated[float, Field(description="Share of pairs that are reversed")]
    m_vlalign_k: Annotated[int, Field(description="Texts compared")]
    feature_mse: Annotated[float, Field(description="Of unit features, 0 to 4")]
    mean_angle: Annotated[float, Field(description="Between the features, in degrees")]


class ClassMargin(_Frozen):
    """1 − cosine of a class's text with the nearest other class's; 0 if identical."""

    name: str
    margin: float


class TextDiagnostics(_Frozen):
    """How far apart the class texts of one bank lie."""

    text: str
    classes: int
    mean_cosine: float
    mean_nearest_cosine: float
    effective_rank: Annotated[float, Field(description="exp of the spectrum's entropy")]
    singular_values: Annotated[
        tuple[float, ...], Field(description="Of the mean-centred features, descending")
    ]
    confusable: tuple[ConfusablePair, ...] = ()
    margins: Annotated[tuple[ClassMargin, ...], Field(description="In the order of the bank")] = ()


class PulledApart(_Frozen):
    """A pair of classes whose texts the enrichment moved apart."""

    a: str
    b: str
    before: float
    after: float
    text_a: str
    text_b: str


PictureFile = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}\.(png|jpg)$")]


class SimilarityPicture(_Frozen):
    """The cosines between the texts of each two classes of one bank, as grey pixels.

    A PNG with a pixel for each pair, a row and a column for each class. Since both halves are the
    same, the pixels on and below the diagonal are black. Grey value v (0 to 255) stands for the
    cosine low + (high − low) · v / 255, to half of `step`.
    """

    text: Annotated[str, Field(description="Text strategy")]
    file: Annotated[PictureFile, Field(description="Artifact of the job")]
    low: float
    high: float
    step: Annotated[float, Field(description="Between two neighbouring values")]


class Similarity(_Frozen):
    """How alike the class texts are: one picture for each bank, in one order of classes."""

    classes: Annotated[
        tuple[str, ...], Field(description="Names in the order of rows and columns, like by like")
    ]
    pictures: Annotated[tuple[SimilarityPicture, ...], Field(description="Before enrichment first")]


class Move(_Frozen):
    """Where a class lies on the plane of a `TextPlane` with both texts, as (x, y)."""

    name: str
    before: tuple[float, float]
    after: tuple[float, float]


class TextPlane(_Frozen):
    """How enrichment moved the class texts, seen on a plane.

    The plane of the two main axes (PCA) of both banks together, each around its own middle: that
    all texts moved one way together, as longer ones do, is left out.
    """

    before: Annotated[str, Field(description="Text strategy")]
    after: Annotated[str, Field(description="Text strategy")]
    explained: Annotated[float, Field(description="Share of the variance on the plane, 0 to 1")]
    classes: tuple[Move, ...]


class Thumbnails(_Frozen):
    """Training images of classes that are named in pairs, as one JPEG of square tiles."""

    file: Annotated[PictureFile, Field(description="Artifact of the job")]
    side: Annotated[int, Field(ge=1, description="Of a tile, in pixels")]
    columns: Annotated[int, Field(ge=1, description="Tiles in a row")]
    tiles: Annotated[
        tuple[str, ...], Field(description="Class of each tile, row by row; some have several")
    ]


class Epoch(_Frozen):
    """One epoch of training; losses are means over its steps, unweighted."""

    epoch: Annotated[int, Field(ge=0, le=2**53)]
    learning_rate: float
    loss: float
    losses: dict[str, float]
    weights: Annotated[
        dict[str, float], Field(description="Of the losses at its end, where they are learned")
    ] = {}
    seen_top1: float
    seconds: float
    images_per_second: float


class Report(_Frozen):
    """Everything needed to judge a run and to repeat it."""

    config: TrainConfig
    release_id: int | None
    release_hash: str
    label_set: str
    teacher: str
    teacher_fingerprint: Annotated[str, Field(description="SHA-256 over the teacher's weights")]
    teacher_dim: int
    student_parameters: int
    preflight: Preflight | None = None
    epochs: tuple[Epoch, ...]
    seen_top1_last_epochs: Annotated[
        float | None, Field(description="Mean of the last 5 epochs, or of as many as there are")
    ] = None
    accuracies: tuple[Accuracy, ...]
    joint: tuple[JointAccuracy, ...] = ()
    calibration: Calibration | None = None
    forecast: Forecast | None = None
    imitation: tuple[Imitation, ...] = ()
    diagnostics: tuple[TextDiagnostics, ...]
    pulled_apart: tuple[PulledApart, ...]
    # Of workers that draw; what is drawn lies in artifacts beside the report.
    similarity: Similarity | None = None
    text_plane: TextPlane | None = None
    thumbnails: Thumbnails | None = None
    flagged_texts: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    started_at: datetime
    finished_at: datetime
