"""BAKE: predictions spread over similar samples of the batch are better targets than those of one sample.

Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification", arXiv 2104.13298.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from gankd.distributed.processes import gather, own_rows
from gankd.losses.self_distillation import spread_over_batch
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term, TermConfig
from gankd.models.taps import default_taps
from generators.settings import Positive, Weight


class BAKEConfig(TermConfig):
    """Task loss + weight * T^2 KL to the ensembled predictions."""

    name: Literal["bake"] = "bake"
    """The method."""
    weight: Weight = 1.0
    """Weight of the term."""
    temperature: Positive = 4.0
    """Classes: softens both distributions; the similarities have none."""
    omega: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the other samples in a target; 0.9 on TinyImageNet and the fine-grained sets."""
    images_per_class: Literal[2, 4] = 4
    """Classes: images of one class that a batch has together; 2 on TinyImageNet and the fine-grained sets."""

    @property
    def sampling(self) -> str:
        return {2: "class_pairs", 4: "class_fours"}[self.images_per_class]


class BAKE(Term):
    """A = softmax over the other samples of the cosines of pooled features, Q = (1 - omega) (I - omega A)^-1 softmax(s/T),
    L = mean_n T^2 KL(Q_n || softmax(s_n / T)). Scalars: the predictions are spread likewise, mean (s - Q)^2.

    Batches of classes are drawn in groups of a class: of 128 images, 32 and 3 others of the class of each.

    >>> student = gankd.distill(student, real=train, method="bake", steps=2)

    Loss: losses.self_distillation.bake_loss
    """

    Config = BAKEConfig
    heads = frozenset({"scalar"})
    hint = "bake averages predictions of similar images. Use task.head: scalar."
    needs_teacher = False

    def __init__(self, config: BAKEConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps = default_taps(setup.student, image_shape=setup.data.image_shape)[-1:]

    def forward(self, outputs: Outputs) -> Tensor:
        logits, embeddings = outputs.student, outputs.student_features[self.student_taps[0]]
        temperature, omega = self.config.temperature, self.config.omega
        predictions = self.task.soft_labels(logits, temperature=temperature)
        batch = {"embeddings": gather(embeddings), "values": gather(predictions)}  # of all processes
        targets = spread_over_batch(**batch, omega=omega)[own_rows()]
        return self.task.soft_divergence(logits, targets, temperature=temperature)
