"""What a network's inputs are normalised by: the one place that finds it out, whoever made the network.

normalization_of(timm.create_model("resnet18", pretrained=True))  # mean, std, size and where they were read
normalization_of(torchvision.models.ResNet18_Weights.DEFAULT)
normalization_of(AutoImageProcessor.from_pretrained(...))
"""

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gankd.tasks import Classification, Task, task_from
from generators.images import channel_statistics

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
CARD = "gankd"  # the key of a state dict's metadata for what `remember` was told


class Normalize(nn.Module):
    """Images in [0, 1] to zero mean and unit variance per channel, [N, C, H, W].

    mean, std: per channel, [C].
    source: where they were read, for sentences.
    image_size: height and width that the network was made for, where that is known.
    """

    def __init__(
        self, mean: Tensor, std: Tensor, source: str = "the statistics given", image_size: tuple[int, int] | None = None
    ):
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1).float(), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1).float(), persistent=False)
        self.source, self.image_size = source, image_size

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    @classmethod
    def of(cls, images, sample: int = 10_000) -> "Normalize":
        """The statistics of uint8 images [N, C, H, W], from an even sample of at most `sample` of them."""
        return cls(*channel_statistics(images, sample), "the images' own statistics")


def normalization_of(model: Any) -> Normalize | None:
    """How images in [0, 1] become the inputs of `model`, where it says so itself; None where nobody knows.

    model: a network trained by gankd (`input_normalization`), of timm (`pretrained_cfg`), or of Hugging Face whose
        folder or cache holds its image processor's settings; or what comes with one: weights or transforms of
        torchvision, an image processor, a `Normalize`. A network of torchvision does not say by which weights it was
        initialised: give those.
    Raises ValueError: means and standard deviations that cannot be.
    """
    if isinstance(model, Normalize):
        return model
    if known := getattr(model, "input_normalization", None):
        return _normalize(*known, "the network's input_normalization")
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if config is not None and not isinstance(config, Mapping):
        config = vars(config)  # timm's PretrainedCfg
    if config and config.get("mean"):
        return _normalize(config["mean"], config["std"], "timm's pretrained_cfg", (config.get("input_size") or ())[1:])
    processor = getattr(model, "image_processor", model)
    if getattr(processor, "image_mean", None) is not None:
        return _of_processor(vars(processor), "the image processor")
    if isinstance(model, nn.Module) and not type(model).__module__.startswith("torchvision.transforms"):
        found = _preprocessor_config(getattr(getattr(model, "config", None), "_name_or_path", None))
        return _of_processor(json.loads(found.read_text()), str(found)) if found else None
    for step in _transforms(model):
        if isinstance(getattr(step, "mean", None), Sequence):
            return _normalize(step.mean, step.std, "the weights' transforms", tuple(getattr(step, "crop_size", ())))
    return None


def normalization_for(model: nn.Module, otherwise: Any, whose: str = "the network") -> Normalize:
    """`normalization_of` a network, or what `otherwise` is or has (its images' statistics) with a warning that says so: by
    other statistics than it was trained with, a good network answers badly without a word."""
    known = normalization_of(model)
    if known is not None:
        return known
    assumed = otherwise if isinstance(otherwise, Normalize) else Normalize.of(otherwise.images)
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in card_of(assumed))
    warnings.warn(
        f"{whose} ({type(model).__name__}) does not say how its inputs were normalised; taken are {assumed.source}: mean "
        f"{mean}, std {std}. If it was trained with others, give them: normalize=Normalize(mean, std), a Teacher with its "
        "own, or the attribute input_normalization = (mean, std).",
        stacklevel=3,
    )
    return assumed


def task_known_to(model: nn.Module) -> Task | None:
    """What a network says that its outputs mean: what `remember` told it, or the names of the classes that a configuration
    of Hugging Face holds (`id2label`); None where it says nothing."""
    if (task := getattr(model, "output_task", None)) is not None:
        return task
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(labels, Mapping) or len(labels) < 2:
        return None
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return None if names == tuple(f"LABEL_{index}" for index in range(len(names))) else Classification(names)


def card_of(normalize: Normalize) -> tuple[list[float], list[float]]:
    """Means and standard deviations per channel, as `input_normalization` holds them."""
    return normalize.mean.flatten().tolist(), normalize.std.flatten().tolist()


def card_of_task(task: Task) -> dict[str, Any]:
    """A task as JSON holds it; `task_from` reads it."""
    return {"kind": task.kind, **dataclasses.asdict(task)}


def remember(model: nn.Module, normalize: Normalize | None = None, task: Task | None = None) -> None:
    """Let `model` say from now on how its inputs are normalised and what its outputs mean: by its attributes
    `input_normalization` and `output_task`, which travel with its weights (see `carry`).
    """
    if normalize is not None:
        model.input_normalization = card_of(normalize)
    if task is not None:
        model.output_task = task
    carry(model)
    if inner := getattr(model, "_orig_mod", model.module if isinstance(model, WRAPPERS) else None):
        remember(inner, normalize, task)


def carry(model: nn.Module) -> nn.Module:
    """Let what `remember` is told travel in the metadata of `state_dict()`, whose keys stay those of the network.

    `torch.save` keeps the metadata. `load_state_dict` of a network that carries (all that `build_model` makes of `NETWORKS`)
    reads it, and `load_checkpoint` does so for any network. A fresh network of a user's own class that loads by
    `load_state_dict`, or weights in a file of another kind, say nothing, and `normalization_for` warns.
    """
    if _write_card not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_write_card)
        model.register_load_state_dict_pre_hook(_read_card)
    return model


def recall(model: nn.Module, card: Mapping[str, Any]) -> None:
    """Let `model` say what a `card` from a state dict's metadata says."""
    normalization, task = card.get("input_normalization"), card.get("output_task")
    remember(
        model,
        _normalize(*normalization, "the checkpoint") if normalization else None,
        task_from(task) if task else None,
    )


def _write_card(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    task = getattr(module, "output_task", None)
    normalization = getattr(module, "input_normalization", None)
    if task or normalization:
        metadata[CARD] = {"input_normalization": normalization, "output_task": card_of_task(task) if task else None}


def _read_card(module: nn.Module, state: dict, prefix: str, metadata: dict, *others: Any) -> None:
    recall(module, metadata.get(CARD, {}))


def _normalize(mean: Iterable, std: Iterable, source: str, image_size: Sequence[int] = ()) -> Normalize:
    mean, std = torch.tensor([*mean], dtype=torch.float32), torch.tensor([*std], dtype=torch.float32)
    if mean.shape != std.shape or not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(
            f"{source}: means {mean.tolist()} and standard deviations {std.tolist()} must be one a channel, the latter "
            "positive, for images in [0, 1]."
        )
    size = (int(image_size[0]), int(image_size[-1])) if image_size else None
    return Normalize(mean, std, source, size)


def _of_processor(settings: Mapping[str, Any], source: str) -> Normalize:
    """An image processor of Hugging Face: inputs are x * rescale_factor of uint8 x, less the mean, over the std."""
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    size = dict(size) if isinstance(size, Mapping) else {"height": size, "width": size} if size else {}
    if "height" not in size and "shortest_edge" in size:
        size = {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    mean, std = settings["image_mean"], settings["image_std"]
    if settings.get("do_normalize") is False:
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    factor = (settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale") is not False else 1.0
    scale = 255 * factor  # of images in [0, 1]
    mean, std = [value / scale for value in mean], [value / scale for value in std]
    return _normalize(mean, std, source, (size["height"], size["width"]) if size.get("height") else ())


def _preprocessor_config(name: str | None) -> Path | None:
    """The image processor's settings beside the weights of a Hugging Face network, in its folder or the cache."""
    if not name:
        return None
    if Path(name).is_dir():
        found = Path(name) / "preprocessor_config.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "preprocessor_config.json") if name.count("/") <= 1 else None
        found = Path(cached) if isinstance(cached, str) else Path()
    return found if found.is_file() else None


def _transforms(given: Any) -> list:
    """The steps of torchvision's transforms, of weights of an entry of theirs, or of a Compose; the last first."""
    if not callable(given) and callable(getattr(given, "transforms", None)):
        given = given.transforms()
    steps = getattr(given, "transforms", None)
    return [*reversed(steps)] if isinstance(steps, list | tuple) else [given]
