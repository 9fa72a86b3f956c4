"""The report of a training job.

Accuracies are in percent (0–100), cosines in [−1, 1].
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.job import TrainConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


SplitName = Literal["train", "seen", "unseen"]


class SplitCount(_Frozen):
    """Number of images of a split, and of its smallest and largest class."""

    split: SplitName
    images: int
    classes: int
    fewest: int
    most: int
    held_out: Annotated[
        bool, Field(description="Whether the images were held out of the training images")
    ] = False


class Preflight(_Frozen):
    """Findings of the checks before the first training step."""

    splits: tuple[SplitCount, ...]
    unreadable: Annotated[tuple[str, ...], Field(description="Images that cannot be read")]
    without_text: Annotated[tuple[str, ...], Field(description="Keys of classes without text")]
    teacher_sample: Annotated[
        int, Field(description="Seen images that the teacher was evaluated on")
    ]
    teacher_top1: Annotated[float | None, Field(description="Percent; null if not evaluated")]
    chance: Annotated[float, Field(description="Accuracy of random guessing, percent")]


class Accuracy(_Frozen):
    """Accuracy of a model with a text bank on a split."""

    model: Literal["teacher", "student"]
    text: Annotated[str, Field(description="Text strategy, e.g. 'name' or 'name+description'")]
    split: Literal["seen", "unseen"]
    top1: Annotated[float, Field(description="Percent of images")]
    mean_per_class: Annotated[float, Field(description="Mean over classes of top-1, percent")]
    images: int
    classes: int


class JointAccuracy(_Frozen):
    """Accuracy when seen and unseen classes compete for each image (generalised zero-shot).

    Accuracies are top-1 in percent of images.
    """

    model: Literal["teacher", "student"]
    text: Annotated[str, Field(description="Text strategy, e.g. 'name' or 'name+description'")]
    bias: Annotated[float, Field(description="Subtracted from the cosines of seen classes")]
    seen: float
    unseen: float
    harmonic_mean: Annotated[float, Field(description="Harmonic mean of both accuracies, percent")]
    best_harmonic_mean: Annotated[
        float, Field(description="With the best bias, which only unseen images can determine")
    ]
    ausuc: Annotated[
        float, Field(description="Area under the curve of both accuracies over all biases, 0 to 1")
    ]
    classes: int


class ReliabilityBin(_Frozen):
    """The images whose best probability is in one of several equally wide bins; never empty."""

    images: int
    confidence: Annotated[float, Field(description="Mean probability of the best class, 0 to 1")]
    accuracy: Annotated[float, Field(description="Fraction of correct predictions, 0 to 1")]


class UnknownScore(_Frozen):
    """How well a score separates images of seen classes from images of unseen classes."""

    score: Annotated[
        str, Field(description="cosine, softmax, normalised; the first two also with look-alikes")
    ]
    auroc: Annotated[float, Field(description="0 to 1")]
    fpr_at_95_tpr: Annotated[
        float,
        Field(
            description="Unseen images above the threshold that 95 % of seen images pass, percent"
        ),
    ]


class Calibration(_Frozen):
    """Calibration of a student's probabilities, and detection of unknown images.

    Probabilities are softmax((cosine − seen_bias · seen) / temperature). All parameters are fitted
    on validation images of seen classes.
    """

    temperature: Annotated[float, Field(gt=0)]
    seen_bias: Annotated[
        float, Field(description="Subtracted from the cosines of seen classes")
    ] = 0.0
    text_photos: Annotated[
        float, Field(gt=0, description="Weight of a class's text, in example photos")
    ] = 1.0
    ece_before: Annotated[
        float | None,
        Field(description="Expected calibration error with the training temperature, percent"),
    ] = None
    ece_after: Annotated[
        float | None, Field(description="The same with the fitted temperature")
    ] = None
    reliability_before: tuple[ReliabilityBin, ...] = ()
    reliability_after: Annotated[
        tuple[ReliabilityBin, ...], Field(description="With the fitted temperature (cross-fitted)")
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
        tuple[UnknownScore, ...],
        Field(description="Comparison of scores; empty without unseen images"),
    ] = ()
    look_alikes_reject_seen: Annotated[
        float | None, Field(description="Seen images most similar to a look-alike, percent")
    ] = None
    look_alikes_reject_unseen: Annotated[
        float | None, Field(description="Unseen images most similar to a look-alike, percent")
    ] = None
    threshold_rejects_unseen: Annotated[
        float | None,
        Field(
            description="Unseen images rejected by the cosine threshold that rejects as many seen "
            "images as the look-alikes do, percent"
        ),
    ] = None


class ForecastValue(_Frozen):
    """An expected accuracy in percent, with its 95 % interval."""

    value: float
    low: float
    high: float


class ForecastPoint(_Frozen):
    """Expected accuracies with a number of new classes that have only texts."""

    classes: Annotated[int, Field(description="Number of new classes")]
    extrapolated: Annotated[
        bool, Field(description="Whether these are more classes than the proxy left out")
    ]
    alone: Annotated[
        ForecastValue, Field(description="Images of new classes, only new classes compete")
    ]
    joint_seen: Annotated[
        ForecastValue, Field(description="Images of seen classes, all classes compete")
    ]
    joint_unseen: Annotated[
        ForecastValue, Field(description="Images of new classes, all classes compete")
    ]
    joint_harmonic_mean: Annotated[
        ForecastValue, Field(description="Harmonic mean of the two joint accuracies")
    ]


class Forecast(_Frozen):
    """Forecast of the accuracy on classes that are added later.

    Measured with a proxy: a student trained for fewer epochs without some of the seen classes.
    """

    left_out: Annotated[int, Field(description="Seen classes that the proxy was not trained on")]
    images: Annotated[int, Field(description="Validation images of these classes")]
    epochs: Annotated[int, Field(description="Epochs of the proxy")]
    proxy_top1: Annotated[
        float,
        Field(description="Top-1 of the proxy on the seen classes it was trained on, percent"),
    ]
    student_top1: Annotated[
        float, Field(description="Top-1 of the student on the same classes, percent")
    ]
    points: tuple[ForecastPoint, ...]


class ConfusablePair(_Frozen):
    """Two classes whose texts are very similar."""

    a: str
    b: str
    cosine: float


class Imitation(_Frozen):
    """How closely the student's image features match the teacher's on one split.

    The metrics of Li et al. (ICCV 2023): M_rel (Eq. 4), M_neigh (Eq. 5), M_vlalign (Eq. 7).
    """

    split: SplitName
    images: Annotated[int, Field(description="Evenly spaced images if the split is very large")]
    m_rel: Annotated[float, Field(description="0 to 1, higher is better")]
    m_neigh: Annotated[
        float | None, Field(description="0 to 1, higher is better; null for a single image")
    ]
    m_neigh_k: Annotated[int, Field(description="Neighbours compared")]
    m_vlalign: Annotated[float, Field(description="Reversed pairs of texts, lower is better")]
    m_vlalign_normalised: Annotated[float, Field(description="Fraction of pairs that are reversed")]
    m_vlalign_k: Annotated[int, Field(description="Texts compared")]
    feature_mse: Annotated[
        float, Field(description="Mean squared distance of unit features, 0 to 4")
    ]
    mean_angle: Annotated[
        float, Field(description="Mean angle between student and teacher features, in degrees")
    ]


class ClassMargin(_Frozen):
    """1 − cosine of a class's text with that of the nearest other class; 0 if equal."""

    name: str
    margin: float


class TextDiagnostics(_Frozen):
    """Similarity of the class texts of a text bank."""

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
    """Two classes whose texts became less similar by enrichment."""

    a: str
    b: str
    before: float
    after: float
    text_a: str
    text_b: str


PictureFile = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}\.(png|jpg)$")]


class SimilarityPicture(_Frozen):
    """The cosines between all class texts of a text bank, as a greyscale PNG.

    It has a row and a column for each class. Since the matrix is symmetric, the pixels on and below
    the diagonal are black. The grey value v (0 to 255) means the cosine
    low + (high − low) · v / 255, within half of `step`.
    """

    text: Annotated[str, Field(description="Text strategy")]
    file: Annotated[PictureFile, Field(description="Artifact of the job")]
    low: float
    high: float
    step: Annotated[float, Field(description="Difference of neighbouring values")]


class Similarity(_Frozen):
    """Similarity of the class texts: one image per text bank, with the same order of classes."""

    classes: Annotated[
        tuple[str, ...],
        Field(description="Names in the order of rows and columns, similar classes together"),
    ]
    pictures: Annotated[tuple[SimilarityPicture, ...], Field(description="Before enrichment first")]


class Move(_Frozen):
    """The position (x, y) of a class on a `TextPlane` with each of its texts."""

    name: str
    before: tuple[float, float]
    after: tuple[float, float]


class TextPlane(_Frozen):
    """How enrichment moved the class texts, projected on a plane.

    The plane of the first two principal components of both text banks, each centred on its mean, so
    that a common shift of all texts, as by longer prompts, is removed.
    """

    before: Annotated[str, Field(description="Text strategy")]
    after: Annotated[str, Field(description="Text strategy")]
    explained: Annotated[float, Field(description="Explained fraction of the variance, 0 to 1")]
    classes: tuple[Move, ...]


class Thumbnails(_Frozen):
    """Training images of classes in listed pairs, as one JPEG of square tiles."""

    file: Annotated[PictureFile, Field(description="Artifact of the job")]
    side: Annotated[int, Field(ge=1, description="Side of a tile in pixels")]
    columns: Annotated[int, Field(ge=1, description="Tiles per row")]
    tiles: Annotated[
        tuple[str, ...], Field(description="Class of each tile, row by row; a class may repeat")
    ]


class Epoch(_Frozen):
    """One epoch of training; losses are unweighted means over its steps."""

    epoch: Annotated[int, Field(ge=0, le=2**53)]
    learning_rate: float
    loss: float
    losses: dict[str, float]
    weights: Annotated[
        dict[str, float],
        Field(description="Weights of the losses at the end of the epoch, if learned"),
    ] = {}
    seen_top1: float
    seconds: float
    image_wait: Annotated[
        float,
        Field(ge=0, le=1, description="Share of `seconds` that the device waited for images"),
    ] = 0.0
    images_per_second: float


class Report(_Frozen):
    """Results of a training run, with everything needed to reproduce it."""

    config: TrainConfig
    release_id: int | None
    release_hash: str
    label_set: str
    teacher: str
    teacher_fingerprint: Annotated[str, Field(description="SHA-256 of the teacher's weights")]
    teacher_dim: int
    student_parameters: int
    preflight: Preflight | None = None
    epochs: tuple[Epoch, ...]
    seen_top1_last_epochs: Annotated[
        float | None, Field(description="Mean of the last epochs, at most 5")
    ] = None
    accuracies: tuple[Accuracy, ...]
    joint: tuple[JointAccuracy, ...] = ()
    calibration: Calibration | None = None
    forecast: Forecast | None = None
    imitation: tuple[Imitation, ...] = ()
    diagnostics: tuple[TextDiagnostics, ...]
    pulled_apart: tuple[PulledApart, ...]
    # Descriptions of the report's image files, which are separate artifacts.
    similarity: Similarity | None = None
    text_plane: TextPlane | None = None
    thumbnails: Thumbnails | None = None
    flagged_texts: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    started_at: datetime
    finished_at: datetime
