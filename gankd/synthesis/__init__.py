"""cGAN-KD's synthesis: candidates from a generator, kept by density ratio (M1) and teacher error (M2), relabelled."""

from gankd.synthesis.config import SubsamplingConfig, SynthesisConfig
from gankd.synthesis.density_ratio import DensityRatio, density_ratio_loss, train_density_ratio
from gankd.synthesis.extractors import SparseAutoencoder, WideClassifier, sparse_autoencoder_loss, train_extractor
from gankd.synthesis.selection import (
    balanced_fake_counts,
    class_error_quantiles,
    error_quantile,
    filter_by_teacher_error,
    select_rho,
)
from gankd.synthesis.store import load_store, read_manifest
from gankd.tasks import adjust_labels, teacher_error

__all__ = [
    "DensityRatio",
    "SparseAutoencoder",
    "SubsamplingConfig",
    "SynthesisConfig",
    "WideClassifier",
    "adjust_labels",
    "balanced_fake_counts",
    "class_error_quantiles",
    "density_ratio_loss",
    "error_quantile",
    "filter_by_teacher_error",
    "load_store",
    "read_manifest",
    "select_rho",
    "sparse_autoencoder_loss",
    "teacher_error",
    "train_density_ratio",
    "train_extractor",
]
