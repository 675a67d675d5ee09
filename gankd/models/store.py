"""A trained network on disk: weights in safetensors, and what one must know to use it.

model, normalize = load_model("runs/digits/students/synthetic_kd/seed-0")
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from gankd.models import build_model, load_checkpoint
from gankd.models.config import ModelConfig
from gankd.models.inputs import CARD, Normalize, card_of, card_of_task, remember
from gankd.tasks import Task, task_from
from generators.checkpoints import read_json, replace_whole


def save_model(
    directory: Path,
    model: nn.Module,
    config: ModelConfig,
    normalize: Normalize,
    *,
    num_outputs: int,
    image_shape: tuple[int, int, int],
    task: Task | None = None,
) -> None:
    """Write model.safetensors and model.json (network, options, outputs, image shape, input mean and std, task)."""
    told = {"input_normalization": card_of(normalize), "output_task": card_of_task(task) if task else None}
    with replace_whole(directory / "model.safetensors") as temporary:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary, metadata={CARD: json.dumps(told)})
    mean, std = card_of(normalize)
    card = {
        "name": config.name,
        "options": config.options,
        "num_classes": num_outputs,
        "image_shape": image_shape,
        "mean": mean,
        "std": std,
        "task": None if task is None else card_of_task(task),
    }
    with replace_whole(directory / "model.json") as temporary:
        temporary.write_text(json.dumps(card, indent=2))


def load_model(directory: str | Path) -> tuple[nn.Module, Normalize]:
    """The network (eval mode) and its input normalisation; it carries `input_normalization` and `output_task` too.
    Raises ValueError: no trained network there, or a weights file that does not fit it."""
    path = Path(directory) / "model.json"
    if not path.exists():
        raise ValueError(f"{directory} holds no trained network (no model.json).")
    card = read_json(path)
    model = build_model(card["name"], card["num_classes"], card["image_shape"][0], **card["options"])
    load_checkpoint(model, Path(directory) / "model.safetensors")
    normalize = Normalize(torch.tensor(card["mean"]), torch.tensor(card["std"]), str(path))
    remember(model, normalize, task_from(card["task"]) if card.get("task") else None)
    return model.eval(), normalize
