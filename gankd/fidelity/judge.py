"""An honest judge of a generator: networks that had no part in its training, and the number that cannot be fooled.

    judge = Judge(train, validation, task, normalize, JudgeStudentConfig(), extractor=teacher_extractor(backbone))
    judged = judgement(judge, generator, {"teacher": teacher})
    print(judged["rows"], judged["warnings"])

Whoever helps a generator to train is pleased by what it asked for: textures that excite its features. So a backbone that
learnt from the same real images without labels looks at the label, the distance, the spread and the nearest training image;
and a little student learns from the generated images alone and is asked about real ones.
"""

import dataclasses
import functools
import math

import torch
from accelerate import Accelerator
from torch import Tensor
from torch_fidelity import FeatureExtractorBase

from gankd.data.sets import ImageSet, kept_randomness
from gankd.evaluation import PROBES, LabelledFeatures, measure, nearest_neighbours
from gankd.experiment.judge import JudgeStudentConfig, little_network
from gankd.fidelity.extractors import embed
from gankd.fidelity.measures import NEIGHBOURS
from gankd.fidelity.scores import at_most, classification_accuracy_score, draw_fakes, oddities
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import Classification, Task
from generators.interface import ConditionalGenerator
from generators.metrics import density_coverage, evenly_spread, frechet_distance

BANK = 5000  # training images that probes are fitted to, and the neighbours' bank
WINDOWS = 10  # groups of scalar labels, equally frequent, inside which images should vary
PARTED = 0.3  # of what real images reach: so much more a helper may see than the judge
MEMORISED = 0.5  # of the distance of validation images: so near to training images generated ones may lie


@dataclasses.dataclass(frozen=True)
class Judge:
    """Judges generated images by real ones.

    train, validation: real images that the generator has seen and has not. normalize: of the little student's inputs.
    extractor: features of a frozen network that has neither helped the generator nor learnt from labels; None: the little
    student judges alone. num_samples: images in its features.
    """

    train: ImageSet
    validation: ImageSet
    task: Task
    normalize: Normalize
    student: JudgeStudentConfig
    extractor: FeatureExtractorBase | None = None
    num_samples: int = 2000
    seed: int = 0
    accelerator: Accelerator | None = None

    def draw(self, generator: ConditionalGenerator) -> ImageSet:
        """Its images for labels distributed like those of the training images, as many as are judged."""
        num_samples = max(self.student.num_samples, self.num_samples if self.extractor else 0)
        return draw_fakes(generator, self.train, num_samples=num_samples, seed=self.seed)

    def learnt_from(self, images: ImageSet) -> float:
        """Top-1 in %, or mean absolute error, on the real validation images, of a little student that has learnt from these
        alone. The random state is the caller's again afterwards.

        Source: Ravuri & Vinyals, "Classification Accuracy Score for Conditional Generative Models", NeurIPS 2019.
        """
        network = self.student.model or little_network(images.image_shape)
        with kept_randomness():
            metrics = classification_accuracy_score(
                at_most(images, self.student.num_samples),
                self.validation,
                build_model=lambda: network.build(self.task.num_outputs, images.image_shape[0]),
                task=self.task,
                training=self.student.resolved(self.student.num_samples),
                normalize=self.normalize,
                seed=self.seed,
                accelerator=self.accelerator,
            )
        return metrics[self.task.metric]

    def error_of(self, generator: ConditionalGenerator) -> float:
        """What a training is scored by, lower is better: 100 - top-1, or the mean absolute error."""
        value = self.learnt_from(dataclasses.replace(self, extractor=None).draw(generator))
        return 100 - value if self.task.higher_is_better else value

    def scores(self, fakes: ImageSet | ConditionalGenerator) -> dict[str, dict]:
        """What the judge finds: "generated", and "real", what real images reach, as `judge_rows` names it.

        The student of "real" has learnt from as many training images; the labels of real images are those of validation,
        their distance, density and coverage those of as many training images.
        """
        fakes = fakes.in_memory() if isinstance(fakes, ImageSet) else self.draw(fakes)
        oddities(fakes, self.train)
        columns = {"generated": fakes, "real": self.train}
        found = {name: {"student": self.learnt_from(images)} for name, images in columns.items()}
        if self.extractor is not None:
            found["generated"] |= self._seen(at_most(fakes, self.num_samples))
            found["real"] |= self._seen(None)
        return found

    def neighbours(self, fakes: ImageSet, count: int = 40) -> tuple[ImageSet, Tensor]:
        """Some of the fakes, over all labels, and the nearest training image of each, uint8 [N, C, H, W]."""
        shown = at_most(fakes, count)
        features, _ = embed(shown.images, self.extractor)
        _, nearest = nearest_neighbours(query_features=features, bank_features=self._train.features, k=1)
        return shown, self.train.images[nearest[:, 0]]

    @functools.cached_property
    def _train(self) -> LabelledFeatures:
        return LabelledFeatures(embed(self.train.images, self.extractor)[0], self.train.labels, self.train.groups)

    @functools.cached_property
    def _validation(self) -> LabelledFeatures:
        return LabelledFeatures(embed(self.validation.images, self.extractor)[0], self.validation.labels)

    def _seen(self, fakes: ImageSet | None) -> dict[str, float | None]:
        """What the extractor's features say of fakes; None: of real images in their place."""
        train, real = self._train, self._validation
        if fakes is None:
            labelled, alike = real, few_of(train, self.num_samples)
        else:
            labelled = alike = LabelledFeatures(embed(fakes.images, self.extractor)[0], fakes.labels)
        pair = {"real_features": real.features, "fake_features": alike.features}
        many = len(real.labels) > NEIGHBOURS
        density, coverage = density_coverage(**pair, neighbours=NEIGHBOURS) if many else (None, None)
        usual, _ = self._to_train(real.features)
        distance, nearest = self._to_train(labelled.features)
        copies = 0 if fakes is None else (fakes.images == self.train.images[nearest]).flatten(1).all(dim=1).sum().item()
        return {
            **{name: result.value for name, result in measure(few_of(train, BANK), labelled, seed=self.seed).items()},
            "frechet": frechet_distance(**pair),
            "density": density,
            "coverage": coverage,
            "spread": spread_inside(labelled, train, isinstance(self.task, Classification)),
            "nearest": distance / usual if usual else None,
            "copies": copies,
        }

    def _to_train(self, features: Tensor) -> tuple[float, Tensor]:
        """The median distance of features, at unit length, to the nearest of a training image, and which these are [N]."""
        cosines, nearest = nearest_neighbours(query_features=features, bank_features=self._train.features, k=1)
        distances = (2 - 2 * cosines[:, 0].double()).clamp(min=0).sqrt()
        return distances.median().item(), nearest[:, 0]


def few_of(known: LabelledFeatures, count: int) -> LabelledFeatures:
    """As `at_most`."""
    rows = evenly_spread(known.labels, min(count, len(known.labels)))
    groups = None if known.groups is None else known.groups[rows]
    return LabelledFeatures(known.features[rows], known.labels[rows], groups)


def spread_inside(images: LabelledFeatures, reference: LabelledFeatures, are_classes: bool) -> float | None:
    """How much features vary inside a class or a window of labels, as a share of the reference's: the root of the ratio of
    variances, each summed over features and averaged over the groups that hold two images on either side."""
    labels = [images.labels, reference.labels]
    if not are_classes:
        edges = reference.labels.double().quantile(torch.linspace(0, 1, WINDOWS + 1, dtype=torch.float64)[1:-1])
        labels = [torch.bucketize(each.double(), edges) for each in labels]
    sums = [0.0, 0.0]
    for group in labels[1].unique():
        members = [known.features[own == group] for known, own in zip((images, reference), labels, strict=True)]
        if min(map(len, members)) >= 2:
            sums = [total + each.double().var(dim=0).sum().item() for total, each in zip(sums, members, strict=True)]
    return math.sqrt(sums[0] / sums[1]) if sums[1] else None


def agreement_of(helper: Teacher, columns: dict[str, ImageSet], task: Task) -> dict[str, float]:
    """How well labels fit images in the eyes of a network that helps: in %, or the mean absolute error, a column each."""
    answers = {name: (helper.map(images.images, helper), images.labels) for name, images in columns.items()}
    return {name: task.label_score(outputs, labels) for name, (outputs, labels) in answers.items()}


JUDGED_HEAD = ["", "better", "generated", "real images"]


def judge_rows(judged: dict, task: Task) -> list[list[str]]:
    """What a judge and the helpers found, for a table: [name, which way is better, generated, real] a row."""
    metric, group, better = ("top-1", "class", "higher")
    if not isinstance(task, Classification):
        metric, group, better = "mean absolute error", "window of labels", "lower"
    names = {
        "student": (f"{metric} of a student that learnt from these alone", better, task.unit),
        **{key: (f"label by the judge ({protocol})", better, task.unit) for key, protocol in PROBES.items()},
        "frechet": ("Frechet distance", "lower", ""),
        "density": ("density", "higher", ""),
        "coverage": ("coverage", "higher", ""),
        "spread": (f"spread inside a {group}", "", ""),
        "nearest": ("distance to the nearest training image", "", ""),
    }
    generated, real = judged["generated"], judged["real"]
    found = [(*names[key], generated[key], real[key]) for key in names if generated.get(key) is not None]
    for name, agreed in judged["helpers"].items():
        found.append((f"label by the {name}", better, task.unit, agreed["generated"], agreed["real"]))
    return [[name, way, *(f"{value:.3g} {unit}".strip() for value in pair)] for name, way, unit, *pair in found]


def chance_of(labels: Tensor, task: Task) -> float:
    """What an answer that is always the same reaches on labels: the share of the most frequent class, or the error of the
    median."""
    if isinstance(task, Classification):
        return 100 * labels.bincount().max().item() / len(labels)
    return (labels.double() - labels.double().median()).abs().mean().item()


def warnings_of(judged: dict, task: Task) -> list[str]:
    """What a reader of the scores has to be told, a sentence each: helpers and judge part, training images come back."""
    generated, real, chance = judged["generated"], judged["real"], judged["chance"]
    sentences, unit = [], f" {task.unit}".rstrip()
    voices = {PROBES[key]: (generated[key], real[key]) for key in PROBES if key in generated}
    voices = {f"the judge ({protocol})": pair for protocol, pair in voices.items()}
    voices["a student that learns from them alone"] = (generated["student"], real["student"])

    def share(fake: float, known: float) -> float:
        """What generated images reach of what real ones do, above chance; infinite where real ones do not exceed it."""
        gain = known - chance if task.higher_is_better else chance - known
        return (fake - chance if task.higher_is_better else chance - fake) / gain if gain > 0 else math.inf

    strictest = min(voices, key=lambda voice: share(*voices[voice]))
    fake, known = voices[strictest]
    for name, found in judged["helpers"].items():
        if PARTED < share(found["generated"], found["real"]) - share(fake, known) < math.inf:
            sentences.append(
                f"the {name} and the judge part: the labels of generated images score {found['generated']:.3g}{unit} by the "
                f"{name} (real ones: {found['real']:.3g}{unit}) and {fake:.3g}{unit} by {strictest} (real ones: "
                f"{known:.3g}{unit}): the images may show what pleases the {name}, and not their label."
            )
    if (nearest := generated.get("nearest")) is not None and nearest < MEMORISED:
        sentences.append(
            f"generated images lie {nearest:.2g} times as far from the nearest training image as validation images do: the "
            "generator may repeat its training images."
        )
    if generated.get("copies"):
        sentences.append(f"{generated['copies']} generated images equal a training image pixel by pixel.")
    return sentences


def judgement(judge: Judge, generator: ConditionalGenerator | ImageSet, helpers: dict[str, Teacher]) -> dict:
    """All that a judge and the helpers say of a generator, as JSON values: the columns of `Judge.scores`, "helpers",
    "chance", "rows" and "warnings"."""
    fakes, task = generator if isinstance(generator, ImageSet) else judge.draw(generator), judge.task
    columns = {"generated": at_most(fakes, judge.num_samples), "real": judge.validation}
    judged = {**judge.scores(fakes), "chance": chance_of(judge.validation.labels, task)}
    judged["helpers"] = {name: agreement_of(helper, columns, task) for name, helper in helpers.items()}
    judged |= {"num_samples": judge.num_samples, "num_learnt_from": judge.student.num_samples}
    return {**judged, "rows": judge_rows(judged, task), "warnings": warnings_of(judged, task)}
