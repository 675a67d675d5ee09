"""Networks in whose features images are compared, as torch-fidelity takes them: a teacher, or Inception from a file."""

from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, FeatureExtractorInceptionV3, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from gankd.data.sets import LazyImages
from gankd.fingerprints import digest, file_hash, fingerprint
from gankd.models.teacher import Teacher
from generators import checkpoints
from generators.images import to_unit_range


class TeacherExtractor(FeatureExtractorBase):
    """A frozen teacher as torch-fidelity sees an extractor: uint8 [N, C, H, W] to its features [N, D] and outputs [N, K]."""

    teacher: ClassVar[Teacher]

    def __init__(self, name: str, features_list: list[str], **others):  # torch-fidelity hands over all of its settings
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False  # features are caught by a hook

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs, features = self.teacher.outputs_and_features(to_unit_range(images.to(self.teacher.device)))
        found = {"features": features.float(), "logits": outputs.float()}
        return tuple(found[name] for name in self.features_list)


class InceptionExtractor(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception for grey images too, wherever its weights are: uint8 [N, 1 or 3, H, W]."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images.to(self.fc.weight.device).expand(-1, 3, -1, -1))


def teacher_extractor(teacher: Teacher) -> TeacherExtractor:
    """A teacher's features as an extractor. Its name says what the teacher computes: equal teachers share it, others do not.

    Registered under that name, so that `torch_fidelity.calculate_metrics(feature_extractor=extractor.get_name())` works.
    """
    name = f"teacher-{digest(f'{fingerprint(teacher)} {teacher.module}'.encode())}"
    kind = type("TeacherExtractor", (TeacherExtractor,), {"teacher": teacher})
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, kind)
    return kind(name, ["features", "logits"])


def inception_extractor(path: str | Path, *, device: torch.device | str = "cpu") -> InceptionExtractor:
    """The Inception of published FIDs from a weights file that the user has (torch-fidelity's release v0.2.0 holds it).
    Raises ValueError: no such file, one that holds more than tensors, or the weights of something else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} holds no Inception weights: give the file weights-inception-2015-12-05-6726825d.pth of "
            "torch-fidelity's release v0.2.0, or use the teacher's features."
        )
    try:  # torch-fidelity unpickles whatever it is given; what passes here is tensors only, and harmless there
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of tensors only ({type(error).__name__}) and is not unpickled: give the original "
            "Inception weights of torch-fidelity."
        ) from error
    name = f"inception-{file_hash(path)}"
    try:
        network = InceptionExtractor(name, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another network than torch-fidelity's Inception.") from error
    return network.to(device)


@torch.no_grad()
def embed(
    images: Tensor | LazyImages, extractor: FeatureExtractorBase, *, cache: Path | None = None, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Features [N, D] and logits [N, K] of uint8 images [N, C, H, W], float32 on the CPU.

    cache: a folder where they are kept under the content of the images and the name of the extractor; None keeps nothing.
    Raises ValueError for a kept file that cannot be read.
    """
    file = None
    if cache is not None:
        file = Path(cache) / f"{checkpoints.images_fingerprint(images)}-{extractor.get_name()}.safetensors"
        if file.exists():
            try:
                kept = load_file(file)
                return kept["features"], kept["logits"]
            except (SafetensorError, KeyError) as error:
                raise ValueError(f"{file} is cut off or holds something else; delete it.") from error
    parts = [extractor(images[chunk]) for chunk in torch.arange(len(images)).split(batch_size)]
    features, logits = (torch.cat([part.cpu() for part in each]) for each in zip(*parts, strict=True))
    if file is not None:
        with checkpoints.replace_whole(file) as temporary:
            save_file({"features": features, "logits": logits}, temporary)
    return features, logits
