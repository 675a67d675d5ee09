"""The judge of a generator on cases whose answer is known: real digits as fakes, labels that mean nothing, copies, a fool.

Its features are the pixels; the helper of the last test reads the label off a corner of the image, as no judge does.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

import gankd
import generators
from gankd.data.sets import ImageSet
from gankd.evaluation import LabelledFeatures
from gankd.experiment.judge import JudgeConfig, JudgeStudentConfig, little_network
from gankd.fidelity.extractors import teacher_extractor
from gankd.fidelity.judge import Judge, judgement, spread_inside
from gankd.models import ModelConfig
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import task_of

PIXELS = Normalize(torch.zeros(1), torch.ones(1))
STUDENT = JudgeStudentConfig(
    model=ModelConfig(options={"widths": [8, 16]}), num_samples=300, steps=120, batch_size=32, learning_rate=0.02
)


def halves(name: str, **settings) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Two halves of the real training images, and validation images."""
    data = gankd.load_data(name, image_size=8, validation=300, seed=0, **settings)
    rows = torch.arange(len(data.train))
    return data.train.subset(rows[::2]), data.train.subset(rows[1::2]), data.validation


def judge_by_pixels(train: ImageSet, validation: ImageSet) -> Judge:
    task = task_of(train)
    extractor = teacher_extractor(Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, task.num_outputs)), PIXELS))
    return Judge(train, validation, task, Normalize.of(train.images), STUDENT, extractor, num_samples=250)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet, ImageSet]:
    return halves("digits")


def test_real_images_as_fakes_are_as_good_as_real_ones(digits):
    train, other, validation = digits
    judged = judgement(judge_by_pixels(train, validation), other, {})
    fakes, real = judged["generated"], judged["real"]
    assert real["student"] > 60 and real["linear"] > 85
    for name, tolerance in {
        "student": 12,
        "linear": 6,
        "knn_200": 6,
        "knn_1": 6,
        "density": 0.2,
        "coverage": 0.1,
    }.items():
        assert fakes[name] == pytest.approx(real[name], abs=tolerance), name
    for name in ("spread", "nearest"):
        assert fakes[name] == pytest.approx(1, abs=0.1), name
    assert judged["warnings"] == []
    assert {len(row) for row in judged["rows"]} == {4}
    json.dumps(judged, allow_nan=False)


def test_labels_that_mean_nothing_teach_nothing_and_a_helper_that_is_fooled_is_told(digits):
    """The images are real, their labels another's; a corner of each shows the label, which is all that the helper reads."""
    train, other, validation = digits
    names = other.class_names
    mixed = other.labels[torch.randperm(len(other), generator=torch.Generator().manual_seed(0))]
    images = other.images.clone()
    images[:, 0, 0, 0] = (100 + 10 * mixed).to(torch.uint8)
    flat = train.images.flatten(1).float() / 255
    weights = torch.linalg.lstsq(flat, F.one_hot(train.labels).float()).solution  # what it knows of real images

    class Fooled(nn.Module):
        def forward(self, inputs):
            corner = (255 * inputs[:, 0, 0, 0] - 100) / 10
            stamped = F.one_hot(corner.round().clamp(0, 9).long(), 10).float()
            return torch.where((corner > -1)[:, None], stamped, inputs.flatten(1) @ weights)

    fakes = ImageSet(images, mixed, class_names=names)
    helper = Teacher(Fooled(), PIXELS, task=task_of(train))
    judged = judgement(judge_by_pixels(train, validation), fakes, {"teacher": helper})
    assert judged["helpers"]["teacher"]["generated"] == 100
    assert judged["generated"]["student"] < 30 and judged["generated"]["linear"] < 30
    (sentence,) = judged["warnings"]
    assert sentence.startswith(
        "the teacher and the judge part: the labels of generated images score 100 % by the teacher"
    )
    assert judged["rows"][-1][:3] == ["label by the teacher", "higher", "100 %"]


def test_training_images_that_come_back_are_told(digits):
    train, _, validation = digits
    judge = judge_by_pixels(train, validation)
    copies = train.subset(torch.arange(0, len(train), 2))
    judged = judgement(judge, copies, {})
    assert judged["generated"]["nearest"] == pytest.approx(0, abs=1e-3)
    assert judged["generated"]["copies"] == 250
    assert [sentence.split(":")[0] for sentence in judged["warnings"]] == [
        f"generated images lie {judged['generated']['nearest']:.2g} times as far from the nearest training image as "
        "validation images do",
        "250 generated images equal a training image pixel by pixel.",
    ]
    shown, nearest = judge.neighbours(copies, 12)
    assert torch.equal(shown.images, nearest) and len(shown.labels.unique()) == 10


def test_scalars_are_judged_in_their_units():
    train, other, validation = halves("rotated_digits", kind="regression")
    judge = judge_by_pixels(train, validation)
    judged = judgement(judge, other, {})
    shuffled = judge.scores(replace(other, labels=other.labels.flip(0)))
    fakes, real, chance = judged["generated"], judged["real"], judged["chance"]
    assert fakes["ridge"] == pytest.approx(real["ridge"], abs=2) and real["ridge"] < 0.7 * chance
    assert fakes["student"] < shuffled["generated"]["student"] and fakes["student"] < chance
    assert fakes["spread"] == pytest.approx(1, abs=0.1)
    assert "mean absolute error of a student that learnt from these alone" in [row[0] for row in judged["rows"]]


def test_a_spread_is_that_inside_classes_whatever_lies_between_them():
    labels = torch.arange(200) % 2
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    real = LabelledFeatures(features + 100 * labels[:, None], labels)
    narrow = LabelledFeatures(features / 2 - 7 * labels[:, None], labels)
    assert spread_inside(narrow, real, are_classes=True) == pytest.approx(0.5, rel=1e-3)


def test_a_student_alone_judges_where_nobody_extracts_features(digits):
    train, other, validation = digits
    judge = replace(judge_by_pixels(train, validation), extractor=None)
    assert set(judgement(judge, other, {})["generated"]) == {"student"}


def test_scores_change_no_bit_of_the_training_and_no_random_state(digits):
    """The score is taken in earnest; the last generator is kept, as without scores."""
    train, _, validation = digits
    judge, calls = replace(judge_by_pixels(train, validation), student=STUDENT.replace(steps=3)), []

    def score(generator) -> float:
        assert 0 <= judge.error_of(generator) <= 100
        calls.append(1)
        return -len(calls)

    logs: dict[str, list] = {"plain": [], "scored": []}
    settings = {"widths": (8, 8), "discriminator_widths": (8,), "latent_dim": 8, "label_dim": 8, "steps": 6}
    settings |= {"batch_size": 16, "log_every": 1, "num_classes": 10, "accelerator": Accelerator(cpu=True)}
    torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    plain = generators.train(train.images, train.labels, log=logs["plain"].append, **settings)
    scored = {"score": score, "score_every": 2, "collapse_ratio": None}
    judged = generators.train(train.images, train.labels, log=logs["scored"].append, **settings, **scored)
    assert len(calls) == 3
    assert logs["plain"] == [line for line in logs["scored"] if "score" not in line]
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), judged.state_dict().values(), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.array_equal(numpy.random.get_state()[1], states[2])


@pytest.mark.parametrize("size", [8, 16, 28, 32, 48, 64, 128])
def test_the_little_network_costs_about_as_much_whatever_the_size(size):
    from torch.utils.flop_counter import FlopCounterMode

    network = little_network((3, size, size)).build(10, 3).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    assert counter.get_total_flops() / 2 < 10e6


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"by": "inception"}, "by: inception needs its weights"),
        ({"by": "discriminator"}, "by: Input should be 'student'"),
        ({"backbone": {"method": {"name": "simreg"}}}, "backbone: method: simreg asks a teacher"),
        (
            {"backbone": {"method": {"name": "squeeze_and_span"}}},
            "backbone: method: squeeze_and_span learns from generated",
        ),
        ({"student": {"num_sample": 3}}, "did you mean 'num_samples'"),
    ],
)
def test_what_cannot_judge_is_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        JudgeConfig.of(settings)
    assert "\n" not in str(error.value)
