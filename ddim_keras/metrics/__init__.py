"""How good generated images are: each metric as a function of features or images, and as a Keras
metric.
"""

from ddim_keras.metrics.base import ImageMetric
from ddim_keras.metrics.extractors import (
    EXTRACTORS,
    CIFAR10Extractor,
    Extractor,
    FashionMNISTExtractor,
    Inception2015Extractor,
    InceptionV3Extractor,
    KerasExtractor,
    get_extractor,
)
from ddim_keras.metrics.fid import FID, fid, frechet_distance
from ddim_keras.metrics.inception_score import InceptionScore, InceptionScoreResult, inception_score
from ddim_keras.metrics.kid import KID, KIDResult, kid, squared_mmd
from ddim_keras.metrics.manifolds import (
    DensityCoverage,
    DensityCoverageResult,
    PrecisionRecall,
    PrecisionRecallResult,
    density_coverage,
    precision_recall,
)
from ddim_keras.metrics.memorization import NearestImages, nearest_training_images
from ddim_keras.metrics.scoring import METRICS

__all__ = [
    "EXTRACTORS",
    "FID",
    "KID",
    "METRICS",
    "CIFAR10Extractor",
    "DensityCoverage",
    "DensityCoverageResult",
    "Extractor",
    "FashionMNISTExtractor",
    "ImageMetric",
    "Inception2015Extractor",
    "InceptionScore",
    "InceptionScoreResult",
    "InceptionV3Extractor",
    "KIDResult",
    "KerasExtractor",
    "NearestImages",
    "PrecisionRecall",
    "PrecisionRecallResult",
    "density_coverage",
    "fid",
    "frechet_distance",
    "get_extractor",
    "inception_score",
    "kid",
    "nearest_training_images",
    "precision_recall",
    "squared_mmd",
]
