"""What hsakd's methods share: branches that tell of every stage what class an image is of and how it was turned, and their
file."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from gankd.distributed.processes import is_distributed
from gankd.methods.taps import stages
from gankd.models.resnet import initialize_convolutions
from gankd.models.tail import NetworkTail, extra_stage
from gankd.models.taps import INPUT, default_taps
from generators.checkpoints import replace_whole

NUM_ROTATIONS = 4


class RotationBranch(nn.Module):
    """What follows a stage, with weights of its own, up to logits of pairs of class and rotation."""

    def __init__(self, before: nn.Module, rest: NetworkTail):
        super().__init__()
        self.before, self.rest = before, rest

    def forward(self, feature: Tensor, images: Tensor) -> Tensor:
        return self.rest(self.before(feature), images)


class Branches(nn.ModuleDict):
    """A branch for each of the last stages of a network, freshly initialised.

    The branch of a stage is a copy of the stages behind it; that of the last stage one more last stage, without stride.
    Every branch ends at the network's own resolution and width, and is as deep as the network or a stage deeper.
    Raises ValueError: a network without stages, that cannot be cut behind them, or that does not end in a linear layer.
    """

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int], num_classes: int, num_stages: int):
        super().__init__()
        self.paths = stage_paths(model, image_shape)[-num_stages:]
        head = default_taps(model, image_shape=image_shape)[-1].removesuffix(INPUT)
        for path in self.paths:
            rest = NetworkTail(model, path, image_shape)
            linear = rest.network.get_submodule(head)
            rest.network.set_submodule(head, nn.Linear(linear.in_features, NUM_ROTATIONS * num_classes))
            before = extra_stage(model, image_shape) if path == self.paths[-1] else nn.Identity()
            self[path.replace(".", "_")] = RotationBranch(before, rest)
        self.cpu().requires_grad_(True).train()  # the model may be a frozen one on a device
        for module in self.modules():  # not a copy of the model's weights: the paper's branches start anew
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        initialize_convolutions(self)

    def forward(self, features: list[Tensor], images: Tensor) -> list[Tensor]:
        """Features at `paths` and the images they are of, [N, C, S, S] -> logits [N, 4K] of every stage."""
        return [branch(feature, images) for branch, feature in zip(self.values(), features, strict=True)]


def stage_paths(model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """The outputs of a network's stages, behind which branches start."""
    return (
        model.branch_taps() if hasattr(model, "branch_taps") else stages(default_taps(model, image_shape=image_shape))
    )


def check_square(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raise a ValueError unless images can be turned by 90 degrees."""
    if image_shape[1] != image_shape[2]:
        raise ValueError(
            f"method {name} turns images by 90 degrees, and {image_shape[1]} x {image_shape[2]} pixels are not square; "
            "crop them, or use another method."
        )


def save_branches(path: Path, branches: Branches, model: nn.Module) -> None:
    """Write a network's branches as safetensors, with a digest of the network's weights; once for all processes."""
    if is_distributed() and distributed.get_rank() > 0:
        return
    with replace_whole(path) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in branches.state_dict().items()}
        save_file(tensors, temporary, metadata={"network": _fingerprint(model)})


def load_branches(path: Path, branches: Branches, model: nn.Module) -> None:
    """Read what `save_branches` wrote for `model`; branches of more stages than asked for may be in the file.
    Raises ValueError: no such file, or one for another network."""
    try:
        with safe_open(path, "pt") as file:
            belongs = (file.metadata() or {}).get("network") == _fingerprint(model)
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.split(".")[0] in branches}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file ({error}); delete it to train anew.") from error
    if not belongs:
        raise ValueError(
            f"{path} holds the branches of another network than this teacher; name another file in method.branches."
        )
    try:
        branches.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the teacher's branches: {str(error)[:300]}") from error


def _fingerprint(model: nn.Module) -> str:
    """A short hash of a network's weights and statistics."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
