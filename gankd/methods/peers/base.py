"""Students that learn together: whole networks, or branches that share the early stages of one.

What the online methods have in common: building the peers, passing a view through all of them, the regression forms of
their losses, and which of them is deployed. The first peer is always the user's student.
"""

import contextlib
import copy
import dataclasses
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, distributed, nn

from gankd.data.loader import Batch
from gankd.distributed.processes import gather, is_distributed, runs, send, share_with_gradient
from gankd.losses import rampup_weight
from gankd.losses.online import label_losses
from gankd.losses.precision import full_precision
from gankd.methods.base import EVERY_TASK, Distiller, MethodConfig
from gankd.methods.setup import Setup
from gankd.models import ModelConfig
from gankd.models.tail import NetworkTail, reinitialize
from gankd.models.taps import Taps, default_taps, feature_shapes
from gankd.tasks import CLASSIFICATION, Task
from generators.settings import Positive, Share, Weight

FROM_FEATURES = {"map": -2, "pooled": -1}  # places in [f0, ..., fL, pooled]
Found = tuple[Tensor, list[Tensor]]  # a network's outputs and features


class PeersConfig(MethodConfig):
    """Whole networks that learn together."""

    peers: Annotated[int, Field(ge=2)] = 2
    """Students that learn together, the one to be deployed among them."""
    peer_models: tuple[ModelConfig, ...] = ()
    """Networks of the peers after the first, which is `student`. Empty: copies of it, each with its own initialisation."""
    deploy: Literal["first", "best", "ensemble"] = "first"
    """What the run returns: the first peer, the peer with the lowest running loss on the labels, or a module that averages
    the outputs of all (as many networks to run; not a network that a run's folder can hold)."""
    spread_peers: bool = False
    """Several processes: each runs only its own peers, on the whole batch, and they tell each other what they found;
    otherwise every process runs all peers on its share of the batch. At most as many processes as peers."""

    cannot_spread: ClassVar[str] = ""
    """Why the peers of a method cannot be spread, and the way out; empty where they can."""

    @property
    def networks(self) -> tuple[ModelConfig, ...]:
        return self.peer_models

    @property
    def deploys_student(self) -> bool:
        return self.deploy != "ensemble"

    @model_validator(mode="after")
    def _peers_fit(self):
        if self.peer_models and len(self.peer_models) != self.peers - 1:
            raise ValueError(
                f"peer_models names {len(self.peer_models)} networks for {self.peers - 1} peers beside the student; set "
                f"peers: {len(self.peer_models) + 1}."
            )
        if self.peer_models and self.deploy == "best":
            raise ValueError(
                "deploy: best chooses among networks of one kind, and peer_models names others; use first."
            )
        if self.spread_peers and self.cannot_spread:
            raise ValueError(f"{self.name} cannot have spread_peers: {self.cannot_spread}.")
        return self


class BranchesConfig(PeersConfig):
    """Branches behind a shared trunk, or whole networks."""

    share: Literal["trunk", "nothing"] = "trunk"
    """Whether the peers share everything but the last stage and what follows it, or nothing."""
    trunk_gradient: Literal["sum", "mean"] = "sum"
    """What the trunk receives of the branches' gradients; mean is the rescaling of Song and Chai (NeurIPS 2018)."""

    @model_validator(mode="after")
    def _branches_are_alike(self):
        if self.share == "trunk" and self.peer_models:
            raise ValueError("peer_models are whole networks, which share no trunk; set share: nothing.")
        if self.share == "nothing" and self.trunk_gradient != "sum":
            raise ValueError("trunk_gradient needs a trunk; set share: trunk.")
        if self.share == "trunk" and self.spread_peers:
            raise ValueError("spread_peers is for whole networks, and branches share a trunk; set share: nothing.")
        return self


class RampedConfig(BranchesConfig):
    """Peers whose teaching begins slowly."""

    weight: Weight = 1.0
    """Weight of what the students learn from one another."""
    temperature: Positive = 3.0
    """Temperature that softens both distributions of classes."""
    ramp: Share = 80 / 300
    """Share of the run in which that weight rises to `weight` (80 of 300 epochs)."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the peers made of a batch, in their order; the student is the first."""

    outputs: list[Tensor]
    """[N, K] each."""
    maps: list[Tensor]
    """Maps of the last stage, [N, C, H, W] each; empty unless the method reads them."""
    pooled: list[Tensor]
    """What the last linear layer takes, [N, D] each; empty unless the method reads them."""
    trunk: Tensor | None
    """The map that branches start from, [N, C, H, W]."""


class Online(Distiller):
    """Base of the online methods. A subclass makes its loss of `answer(views)` and says which features it `reads`."""

    tasks = EVERY_TASK
    heads = frozenset({"scalar", "bins"})
    needs_teacher = False
    hint = "Use task.head: scalar."
    reads: ClassVar[tuple[str, ...]] = ()
    """Which features it reads: `map`, `pooled` or both."""

    def __init__(self, config: MethodConfig, setup: Setup):
        super().__init__(config, setup)
        if self.is_spread and distributed.get_world_size() > config.peers:
            raise ValueError(
                f"spread_peers: {config.peers} peers leave some of {distributed.get_world_size()} processes idle; start "
                f"at most {config.peers}, or set it to false."
            )
        self.image_shape = setup.data.image_shape
        self.trunk_path = None
        if getattr(config, "share", "nothing") == "trunk":
            taps = default_taps(setup.student, image_shape=self.image_shape)
            if len(taps) < 3:
                raise ValueError(
                    f"{type(setup.student).__name__} has one stage, no trunk to share; set share: nothing."
                )
            self.trunk_path = taps[-3]
        self.others = nn.ModuleList([self._peer(index) for index in range(config.peers - 1)])
        self.register_buffer("label_losses", torch.zeros(config.peers))  # running, for deploy: best
        self.ramp = 1.0
        self.shapes_found: list[list[tuple[int, ...]]] = []  # of every peer's outputs and features, without the batch
        if config.spread_peers:
            paths = [["", *self.taps_of(network)] for network in self.networks]  # "" is the network itself
            self.shapes_found = [
                feature_shapes(network, self.image_shape, path)
                for network, path in zip(self.networks, paths, strict=True)
            ]

    def _peer(self, index: int) -> nn.Module:
        """Peer index + 1."""
        if self.config.peer_models:
            return self.config.peer_models[index].build(self.task.num_outputs, self.image_shape[0])
        student, trunk = self.student, self.trunk_path
        peer = NetworkTail(student, trunk, self.image_shape) if trunk else copy.deepcopy(student)
        reinitialize(peer)
        return peer

    @property
    def networks(self) -> list[nn.Module]:
        """Where the peers' features are tapped; a branch has the later part of the student's modules."""
        return [self.student, *(getattr(peer, "network", peer) if self.trunk_path else peer for peer in self.others)]

    def taps_of(self, network: nn.Module) -> list[str]:
        """The paths of what the method reads."""
        if not self.reads:
            return []
        whole = self.student if self.trunk_path else network
        paths = default_taps(whole, image_shape=self.image_shape)
        return [paths[FROM_FEATURES[kind]] for kind in self.reads]

    def shapes(self, kind: str) -> list[tuple[int, ...]]:
        """Shapes without the batch of every peer's `map` or `pooled`."""
        networks = [self.student] * self.config.peers if self.trunk_path else self.networks
        place = self.reads.index(kind)
        return [feature_shapes(network, self.image_shape, [self.taps_of(network)[place]])[0] for network in networks]

    @property
    def is_spread(self) -> bool:
        """Whether every process runs only its own peers."""
        return self.config.spread_peers and is_distributed()

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Spread peers send their own buffers."""
        sent = {id(buffer) for network in self.networks for buffer in network.buffers()} if self.is_spread else set()
        own = [name for name, buffer in self.named_buffers() if id(buffer) in sent]
        return [*super()._ddp_params_and_buffers_to_ignore, *own]

    def views_of(self, batch: Batch, count: int = 1) -> tuple[list[Tensor], Batch]:
        """`count` views of the batch, [N, C, H, W] in [0, 1], and the batch that losses are taken of.

        With spread peers, both hold the samples of all processes, each of which augments its own share.
        """
        views = [self.augment(batch.images) for _ in range(count)]
        if not self.is_spread:
            return views, batch
        shares = (batch.images, batch.labels, batch.indices, batch.is_synthetic)  # no peer reads the rest
        return [gather(view) for view in views], Batch(*map(gather, shares))

    def answers_to(self, batch: Batch) -> tuple[Answers, Batch]:
        """What every peer makes of one view of the batch, and the batch that losses are taken of (see `views_of`)."""
        views, batch = self.views_of(batch)
        answers = self.answer(views)
        self.update_running_loss(answers.outputs, batch.labels)
        return answers, batch

    def answer(self, views: list[Tensor]) -> Answers:
        """One pass of every peer. views: one for all, or one for each, [N, C, H, W] in [0, 1]; of spread peers the same
        in every process."""
        images = [self.normalize(view) for view in views]
        images = images * self.config.peers if len(images) == 1 else images
        trunk, paths = None, [self.taps_of(network) for network in self.networks]
        if self.trunk_path:
            trunk, found = self._of_branches(images, paths)
        elif self.is_spread:
            found = self._of_all_processes(images, paths)
        else:
            peers = zip(self.networks, paths, images, strict=True)
            found = [Taps(network, path)(image) for network, path, image in peers]
        features = {kind: [taps[place] for _, taps in found] for place, kind in enumerate(self.reads)}
        outputs = [output if output.ndim > 1 else output[:, None] for output, _ in found]
        return Answers(outputs, features.get("map", []), features.get("pooled", []), trunk)

    def _of_branches(self, images: list[Tensor], paths: list[list[str]]) -> tuple[Tensor, list[Found]]:
        """The trunk's map, and what every branch makes of it."""
        with self._gradient_into_trunk():
            outputs, (trunk, *features) = Taps(self.student, [self.trunk_path, *paths[0]])(images[0])
        found = [(outputs, features)]
        for branch, path, image in zip(self.others, paths[1:], images[1:], strict=True):
            found.append(Taps(branch, [f"network.{each}" for each in path])(trunk, image))
        return trunk, found

    def _of_all_processes(self, images: list[Tensor], paths: list[list[str]]) -> list[Found]:
        """What every peer makes of its images: this process's peers here, the others where they belong."""
        found, idle = [], []
        for index, (network, image) in enumerate(zip(self.networks, images, strict=True)):
            if runs(index):
                outputs, features = Taps(network, paths[index])(image)
                found.append([full_precision(tensor) for tensor in (outputs, *features)])
            else:
                empty = full_precision(image).new_empty
                found.append([empty(len(image), *shape) for shape in self.shapes_found[index]])
                idle += [parameter for parameter in network.parameters() if parameter.requires_grad]
        if self.training:
            world_size = distributed.get_world_size()
            for process in range(world_size):
                send([each for network in self.networks[process::world_size] for each in network.buffers()], process)
        return [(outputs, features) for outputs, *features in share_with_gradient(found, idle)]

    @contextlib.contextmanager
    def _gradient_into_trunk(self):
        """With trunk_gradient: mean, divides the gradient that enters the trunk by the number of branches."""
        if self.config.trunk_gradient == "sum":
            yield
            return

        def rescale(module, inputs, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient / self.config.peers)

        handle = self.student.get_submodule(self.trunk_path).register_forward_hook(rescale)
        try:
            yield
        finally:
            handle.remove()

    def label_loss(self, outputs: list[Tensor], labels: Tensor) -> Tensor:
        """The sum of the task's loss over peers."""
        return label_losses(outputs, labels, self.task)

    def update_running_loss(self, outputs: list[Tensor], labels: Tensor) -> None:
        """Update the running losses by which the best peer is chosen; every process sees all of them."""
        if self.config.deploy == "best" and self.training:
            with torch.no_grad():
                losses = torch.stack([self.task.loss(output, labels) for output in outputs])
                self.label_losses.lerp_(gather(losses[None]).mean(0), 0.01)

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        self.ramp = rampup_weight(step / num_steps, getattr(self.config, "ramp", 0.0))

    def deployable(self) -> nn.Module:
        if self.config.deploy == "first":
            return self.student
        if self.config.deploy == "best":
            return self.whole(int(self.label_losses.argmin()))
        return Ensemble([self.whole(index) for index in range(self.config.peers)])

    def whole(self, index: int) -> nn.Module:
        """Peer `index` as a plain network with the student's state-dict keys; of a branch, a copy with the trunk."""
        if index == 0 or not self.trunk_path:
            return self.networks[index]
        network = copy.deepcopy(self.student)
        network.load_state_dict(self.others[index - 1].network.state_dict(), strict=False)
        return network


class Ensemble(nn.Module):
    """The mean of several networks' outputs, [N, K]."""

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).mean(0)


def disagreement(outputs: list[Tensor], task: Task) -> Tensor:
    """How unlike the peers answer, for the log: the mean over pairs of |p_i - p_j|, p the softmax (or the scalar itself).

    Peers on one trunk become alike, and then have nothing to teach each other.
    """
    with torch.no_grad():
        stacked = torch.stack([output.float().flatten(1) if output.ndim > 1 else output[:, None] for output in outputs])
        if task.kind == CLASSIFICATION or getattr(task, "head", "scalar") == "bins":
            stacked = stacked.softmax(-1)
        pairs = torch.combinations(torch.arange(len(outputs)))
        return (stacked[pairs[:, 0]] - stacked[pairs[:, 1]]).norm(dim=-1).mean()
