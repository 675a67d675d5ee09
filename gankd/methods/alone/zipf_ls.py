"""Zipf's label smoothing: the pixels of the last map vote for classes, and the ranks of the votes are a soft target.

Liang, Li, Bing, Zhao, Tang, Lin, Fan, "Efficient One Pass Self-distillation with Zipf's Label Smoothing", ECCV 2022,
arXiv 2207.12980.
"""

import contextlib
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from gankd.distributed.processes import gather, gather_with_gradient
from gankd.losses import class_votes, zipf_loss, zipf_targets
from gankd.methods.branches import output_layer, stage_taps
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term, TermConfig
from gankd.models.state import preserve_state
from gankd.models.taps import INPUT, Taps, feature_shapes
from generators.randomness import seeded
from generators.settings import Count, Positive, Weight


class ZipfLSConfig(TermConfig):
    """CE + weight * KL(Zipf targets || softmax over the classes other than the label) + auxiliary_weight * CE of the
    classifiers that shallower stages vote by."""

    name: Literal["zipf_ls"] = "zipf_ls"
    """The method's name."""
    weight: Weight = 0.1
    """Weight of the term: 0.1 on CIFAR-100 and ImageNet, 1 on TinyImageNet and iNaturalist."""
    power: Positive = 1.0
    """Power of Zipf's law: a class of rank r gets r^-power."""
    distribution: Literal["zipf", "unbiased"] = "zipf"
    """Classes without a vote tie at one rank. Zipf: each gets that rank's weight, and together they get most of the target
    (90 % when 6 of 100 classes have votes). Unbiased: they share the weights of the ranks they take (62 %)."""
    votes: Literal["pixels", "logits"] = "pixels"
    """What is ranked: votes of the pixels, or the logits (of networks whose classifier does not take the mean of a map)."""
    upsample_scale: Count | None = None
    """A map is enlarged before it votes. Null: twice up to 4x4 pixels (64 votes, as on CIFAR), else not."""
    stages: Count = 1
    """How many of the deepest stages vote together (pixels); all but the last by a linear classifier of their own."""
    auxiliary_weight: Positive = 0.5
    """Weight of the cross-entropy of those classifiers, whatever `weight` is."""
    only_correct: bool = False
    """Only samples that are classified rightly take part."""

    @model_validator(mode="after")
    def _stages_vote_by_pixels(self):
        if self.stages > 1 and self.votes == "logits":
            raise ValueError("stages are those whose pixels vote, and votes: logits has none; set votes: pixels.")
        return self


class ZipfLS(Term):
    """v_k = #{pixels that the classifier puts into class k}, r_k = 1 + #{j: v_j > v_k}, q_k ~ r_k^-power for k != y;
    L = mean_n KL(q || softmax of the logits without the label's). The map is the one that is averaged for the classifier.
    With several stages the pixels of all their maps are counted, and L has their classifiers' cross-entropy on the averaged
    maps beside it; those are for training only.

    >>> student = gankd.distill(student, real=train, method="zipf_ls", steps=2)

    Loss: losses.zipf.zipf_loss
    """

    Config = ZipfLSConfig
    fewest_classes = 3
    tasks = frozenset({"classification"})
    needs_teacher = False
    hint = (
        "zipf_ls ranks classes; this task has a scalar target. Use supervised with task.head: bins, whose labels are "
        "smoothed to distributions, or a classification task."
    )

    def __init__(self, config: ZipfLSConfig, setup: Setup):
        super().__init__(config, setup)
        if setup.task.num_outputs < 3:
            raise ValueError(
                f"zipf_ls ranks the wrong classes, and of {setup.task.num_outputs} classes at most 1 is wrong: "
                "it needs 3 or more; use label_smoothing."
            )
        self.counts: dict[str, Tensor] = {}
        self.setup = setup
        self.classifiers = nn.ModuleList()
        if config.votes == "pixels":
            self.classifier_input, _ = output_layer(setup, config.name)
            self.student_taps = [_map_before_pooling(setup, self.classifier_input)]
            ((_, height, width),) = feature_shapes(setup.student, setup.data.image_shape, self.student_taps)
            if height * width == 1 and config.stages == 1:
                raise ValueError(
                    f"zipf_ls ranks classes by the votes of pixels, and the last map of {type(setup.student).__name__} has "
                    "one, which makes the term label smoothing: set votes: logits or stages: 2, or give larger images."
                )
        if config.stages > 1:
            paths, shapes = stage_taps(setup, config.name, None, at_least=config.stages)
            first = len(paths) - config.stages
            self.student_taps += paths[first:-1]
            self.classifiers.extend(nn.Linear(shape[0], setup.task.num_outputs) for shape in shapes[first:-1])

    def forward(self, outputs: Outputs) -> Tensor:
        labels, config = outputs.batch.labels, self.config
        law = {"power": config.power, "distribution": config.distribution}
        scores = outputs.student.detach()
        if config.votes == "pixels":
            last, *shallower = (outputs.student_features[path] for path in self.student_taps)
            scores = self.class_votes(last, self.setup.student.get_submodule(self.classifier_input.removesuffix(INPUT)))
            for feature_map, classifier in zip(shallower, self.classifiers, strict=True):
                scores = scores + self.class_votes(feature_map, classifier)
            with torch.no_grad():
                targets = zipf_targets(scores=scores, labels=labels, **law)
                self.counts = {
                    "voted_classes": (scores > 0).sum(dim=1).float().mean(),
                    "unvoted_mass": (targets * (scores == 0)).sum(dim=1).mean(),
                    "label_votes": (scores.gather(1, labels[:, None]).squeeze(1) / scores.sum(dim=1)).mean(),
                }
        logits = {"student_logits": outputs.student, "labels": labels, "scores": scores}
        if config.only_correct:  # the mean is over those of all processes
            gathered = gather_with_gradient(outputs.student), gather(labels), gather(scores)
            logits = dict(zip(logits, gathered, strict=True))
        loss = zipf_loss(**logits, only_correct=config.only_correct, **law)
        auxiliary_weight = config.auxiliary_weight / config.weight  # as the whole term is multiplied by its weight
        for path, classifier in zip(self.student_taps[1:], self.classifiers, strict=True):
            pooled = outputs.student_features[path].mean(dim=(2, 3))  # [N, C]
            loss = loss + auxiliary_weight * self.task.loss(classifier(pooled), labels)
        return loss

    def class_votes(self, feature_map: Tensor, classifier: nn.Linear) -> Tensor:
        """Votes [N, K] of the pixels of [N, C, H, W]."""
        scale = self.config.upsample_scale or (2 if max(feature_map.shape[2:]) <= 4 else 1)
        return class_votes(
            feature_map=feature_map, weight=classifier.weight, bias=classifier.bias, upsample_scale=scale
        )

    def metrics(self) -> dict[str, Tensor]:
        """Classes with a vote, the target's share of those without, and the label's share of the votes."""
        return self.counts


def _map_before_pooling(setup: Setup, classifier_input: str) -> str:
    """Path of the last module whose map, averaged over its pixels, is what the classifier takes.
    Raises ValueError: there is none."""
    student, means = setup.student, {}
    device = next(student.parameters()).device
    images = torch.randn(2, *setup.data.image_shape, generator=seeded("map before pooling")).to(device)

    def watch(path: str, output) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            means[path] = (output.mean(dim=(2, 3)), output.shape[2] * output.shape[3])

    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_state(student))
        stack.enter_context(torch.no_grad())
        student.eval()
        for path, module in student.named_modules():
            hook = module.register_forward_hook(lambda _, __, output, path=path: watch(path, output))
            stack.callback(hook.remove)
        _, (pooled,) = Taps(student, [classifier_input])(images)
    fitting = {
        path: pixels
        for path, (mean, pixels) in means.items()
        if mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-3, atol=1e-5)
    }
    if not fitting:
        raise ValueError(
            f"zipf_ls lets the pixels of the map vote that is averaged for the classifier, and {type(student).__name__} "
            "has none: set votes: logits."
        )
    return max(fitting, key=lambda path: fitting[path])  # not the 1x1 map after the pooling
