"""Inference with a classifier folder: ONNX Runtime, numpy and Pillow, without torch.

from distill.runtime import Classifier

classifier = Classifier.load("birds")
classifier.add("okapi", "a horse-like animal with striped legs")
for prediction in classifier.classify(["photo.jpg"]):
    print(prediction.best.name, prediction.best.probability)
"""

from distill.errors import ClassifierError
from distill.runtime.classifier import Candidate, Classifier, Prediction
from distill.runtime.manifest import ClassEntry, Manifest
from distill.runtime.reasons import Difference, Reason, Reasons

__all__ = [
    "Candidate",
    "ClassEntry",
    "Classifier",
    "ClassifierError",
    "Difference",
    "Manifest",
    "Prediction",
    "Reason",
    "Reasons",
]
