"""Methods without labels: their terms against the pure losses on embeddings made by hand, and what they leave alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import gankd
from gankd.data.augment import SELF_SUPERVISED, Augment, AugmentationConfig
from gankd.data.loader import Batch, BatchSource
from gankd.data.sets import ImageSet
from gankd.experiment.config import RepresentationConfig
from gankd.losses import (
    simreg_loss,
    span_loss,
    squeeze_and_span_loss,
    squeeze_loss,
)
from gankd.methods import Distiller, build_distiller, method_config
from gankd.methods.label_free.base import LabelFree, Projector
from gankd.methods.label_free.simreg import regression_head
from gankd.methods.label_free.squeeze_and_span import Squeeze
from gankd.models import build_model
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import Representation
from gankd.training import TrainingConfig, build_optimizer
from tests.methods.common import FEATURE_WIDTHS, NARROW, fixed_batch, image_sets, make, network
from tests.methods.test_laws import Interruption, assert_equal_state, descend, loss_of

NAMES = ("squeeze_and_span", "vicreg", "simsiam", "simreg")
every_name = pytest.mark.parametrize("name", NAMES)
AUGMENTATION = AugmentationConfig(resized_crop=(0.2, 1), horizontal_flip=True, brightness=0.4, contrast=0.4)
TRAINING = TrainingConfig(steps=4, batch_size=8, log_every=1, checkpoint_every=2, augmentation=AUGMENTATION)
WEIGHTS = {"invariance_weight": 3.0, "variance_weight": 5.0, "covariance_weight": 2.0}


@contextlib.contextmanager
def watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module answers meanwhile."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    yield outputs
    hook.remove()


def looked_at(distiller: Distiller, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The losses of a step, and the views that it saw."""
    torch.manual_seed(0)
    with watched(distiller.augment) as views:
        losses = distiller(batch)
    return losses, views


def answer(distiller: Distiller, view: Tensor) -> tuple[Tensor, Tensor]:
    """The student's outputs and what goes into its last layer, for a view."""
    pooled: list[Tensor] = []
    hook = distiller.student.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    outputs = distiller.student(distiller.normalize(view))
    hook.remove()
    return outputs, pooled[0]


def embedding(distiller: Distiller, view: Tensor) -> Tensor:
    return distiller.projector(answer(distiller, view)[1])


def built(name: str, real: ImageSet | None, synthetic: ImageSet | None, settings: dict, **source) -> Distiller:
    """The method on sets of its own, augmented."""
    reference = real if real is not None else synthetic
    return build_distiller(
        network("representation", 0),
        None,
        Representation(),
        method_config({"name": name, **NARROW.get(name, {}), **settings}),
        augment=Augment(AUGMENTATION),
        normalize=Normalize.of(reference.images),
        data=BatchSource(real, synthetic, **{"batch_size": 8, **source}),
    )


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def teachers(*seeds: int) -> list[Teacher]:
    """Networks of different widths, normalised differently."""
    normalize = Normalize(torch.tensor([0.4]), torch.tensor([0.3]))
    return [Teacher(network("representation", seed, (4, 6 + seed)), normalize) for seed in seeds]


# --- squeeze and span -------------------------------------------------------------------------------------------------


def squeezed(squeeze: Squeeze, features: Tensor) -> Tensor:
    """u = sum_l (A_l h_l + b_l);  u <- relu(batchnorm(W u)) per hidden layer;  V u + c"""
    blocks = features.split(FEATURE_WIDTHS, dim=1)
    joined = sum(F.linear(block, each.weight, each.bias) for block, each in zip(blocks, squeeze.fuse, strict=True))
    for linear, norm, _ in squeeze.hidden:
        joined = F.linear(joined, linear.weight)
        joined = (joined - joined.mean(dim=0)) / (joined.var(dim=0, correction=0) + 1e-5).sqrt()
        joined = F.relu(joined * norm.weight + norm.bias)
    return F.linear(joined, squeeze.output.weight, squeeze.output.bias)


@pytest.mark.parametrize("regularize", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_squeeze_and_span_is_the_equation_on_three_views_apart(regularize: bool, depth: int) -> None:
    settings = {**WEIGHTS, "regularize_squeezed": regularize, "squeeze_depth": depth}
    distiller, _ = make("squeeze_and_span", "representation", settings, augmentation=AUGMENTATION)
    batch = fixed_batch("representation", 7)  # three real images and four synthetic ones
    losses, views = looked_at(distiller, batch)
    assert [len(view) for view in views] == [3, 3, 4]
    a, b, synthetic = (embedding(distiller, view) for view in views)
    total, squeeze, span = squeeze_and_span_loss(
        student_embedding=synthetic,
        squeezed_embedding=squeezed(distiller.squeeze, batch.generator_features),
        student_embedding_real_a=a,
        student_embedding_real_b=b,
        synthetic_ratio=4 / 7,
        regularize_squeezed=regularize,
        **WEIGHTS,
    )
    for name, expected in (("loss", total), ("squeeze", squeeze), ("span", span)):
        torch.testing.assert_close(losses[name], expected, rtol=1e-4, atol=1e-5)
    terms = [losses[f"squeeze_{term}"] for term in ("invariance", "variance", "covariance")]
    weighed = sum(weight * term for weight, term in zip(WEIGHTS.values(), terms, strict=True))
    torch.testing.assert_close(weighed, losses["squeeze"])
    losses["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in distiller.squeeze.output.parameters())


def test_synthetic_images_alone_are_squeezed() -> None:
    batch = fixed_batch("representation")
    distiller = built("squeeze_and_span", None, image_sets(batch)[1], {}, batch_size=5)
    batch = BatchSource(None, image_sets(batch)[1], batch_size=5).batch(3)
    losses, (view,) = looked_at(distiller, batch)
    expected, *_ = squeeze_loss(
        student_embedding=embedding(distiller, view),
        squeezed_embedding=squeezed(distiller.squeeze, batch.generator_features),
    )
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("span") for name in losses)


def test_without_a_squeezing_network_the_features_themselves_are_followed() -> None:
    settings = {"squeeze_depth": 0, "invariance_weight": 1, "variance_weight": 0, "covariance_weight": 0}
    synthetic = image_sets(fixed_batch("representation"))[1]
    distiller = built("squeeze_and_span", None, synthetic, settings, batch_size=5)
    batch = BatchSource(None, synthetic, batch_size=5).batch(0)
    losses, (view,) = looked_at(distiller, batch)
    expected = (embedding(distiller, view) - batch.generator_features).square().mean()
    torch.testing.assert_close(losses["loss"], expected)
    assert num_parameters(distiller.squeeze) == 0
    assert distiller.projector[-1].out_features == sum(FEATURE_WIDTHS)


def test_features_are_standardised_by_those_of_the_whole_set() -> None:
    distiller, _ = make("squeeze_and_span", "representation", {"standardize": True})
    batch = fixed_batch("representation")
    features = batch.generator_features * torch.arange(1, 9) + 5
    batch = Batch(batch.images, batch.labels, batch.indices, batch.is_synthetic, generator_features=features)
    distiller.prepare(BatchSource(*image_sets(batch), batch_size=6, synthetic_fraction=0.5))
    with watched(distiller.squeeze) as outputs:
        distiller(batch)
    standardized = (features - features.mean(dim=0)) / features.std(dim=0)
    torch.testing.assert_close(outputs[0], squeezed(distiller.squeeze, standardized), rtol=1e-4, atol=1e-4)
    assert {"feature_mean", "feature_std"} <= set(distiller.state_dict())


def test_published_networks_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert num_parameters(Squeeze((512,) * 4, 2048, 2048, 3)) == 16_795_648
        assert num_parameters(Squeeze((256,) * 3, 2048, 2048, 3)) == 14_172_160
        assert num_parameters(Projector(512, 512, 2048, 5)) == 2_101_248
        assert num_parameters(regression_head(512, 2048, 4)) == 3_678_720
        assert num_parameters(regression_head(1280, 2048, 4)) == 15_091_968
        assert num_parameters(regression_head(512, 8192, 4)) == 9_976_320
        assert num_parameters(regression_head(512, 2048, 2)) == 2_626_560
        assert num_parameters(regression_head(512, 2048, 1)) == 1_051_648


def test_the_projector_is_as_wide_as_the_backbone_unless_told_otherwise() -> None:
    widths = [make("squeeze_and_span", "representation", {"projector_width": width})[0] for width in (None, 6)]
    assert [each.projector[0].out_features for each in widths] == [8, 6]
    assert [sum(isinstance(layer, nn.Linear) for layer in each.projector) for each in widths] == [5, 5]


# --- two views --------------------------------------------------------------------------------------------------------


def test_vicreg_is_the_span_of_two_views_of_every_image() -> None:
    distiller, _ = make("vicreg", "representation", WEIGHTS, augmentation=AUGMENTATION)
    losses, views = looked_at(distiller, fixed_batch("representation", 7))
    assert [len(view) for view in views] == [7, 7] and not torch.equal(*views)
    a, b = (embedding(distiller, view) for view in views)
    total, *terms = span_loss(student_embedding_a=a, student_embedding_b=b, **WEIGHTS)
    torch.testing.assert_close(losses["loss"], total, rtol=1e-4, atol=1e-5)
    for name, term in zip(("invariance", "variance", "covariance"), terms, strict=True):
        torch.testing.assert_close(losses[name], term, rtol=1e-4, atol=1e-5)


def test_simsiam_predicts_each_view_from_the_other_which_gets_no_gradient() -> None:
    distiller, _ = make("simsiam", "representation", augmentation=AUGMENTATION)
    losses, views = looked_at(distiller, fixed_batch("representation", 7))
    losses["loss"].backward()
    trained = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    a, b = (embedding(distiller, view) for view in views)
    cosines = [F.cosine_similarity(distiller.predictor(one), other.detach()) for one, other in ((a, b), (b, a))]
    expected = -0.5 * sum(cosines).mean()
    torch.testing.assert_close(losses["loss"], expected)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_f22_the_rate_of_simsiams_predictor_stays_where_it_is_while_the_others_fall() -> None:
    distiller, _ = make("simsiam", "representation")
    names = {id(parameter): name for name, parameter in distiller.named_parameters()}
    optimizer = build_optimizer(distiller, TRAINING.replace(weight_decay=0.1))
    decays, constant = {}, set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            decays[names[id(parameter)]] = group["weight_decay"]
            constant |= {names[id(parameter)]} if group.get("constant") else set()
    assert constant == {f"predictor.{name}" for name, _ in distiller.predictor.named_parameters()}
    assert decays["predictor.0.weight"] == decays["projector.0.0.weight"] == 0.1  # they are decayed as all others are
    assert decays["predictor.1.bias"] == decays["projector.0.1.bias"] == 0.0

    rates: list[list[float]] = []
    prepare = Accelerator.prepare

    def watched_prepare(self, model, optimizer):
        optimizer.register_step_pre_hook(
            lambda stepping, *_: rates.append([group["lr"] for group in stepping.param_groups])
        )
        return prepare(self, model, optimizer)

    with mock.patch.object(Accelerator, "prepare", watched_prepare):
        pretrained("simsiam", optimizer="sgd", learning_rate=0.1)
    assert len(rates) == TRAINING.steps
    assert all(rate == 0.1 for step in rates for rate in step[2:])
    assert rates[0][0] == 0.1 and rates[-1][0] == pytest.approx(0.1 * (1 + math.cos(math.pi * 3 / 4)) / 2)


@pytest.mark.parametrize(("spread_out", "expected"), [(True, 1.0), (False, 0.0)])
def test_simsiam_tells_how_far_embeddings_are_spread(spread_out: bool, expected: float) -> None:
    distiller, _ = make("simsiam", "representation")
    embeddings = (
        torch.eye(16).repeat(2, 1) * 2 - torch.eye(16).flip(0).repeat(2, 1) if spread_out else torch.ones(32, 16)
    )
    distiller.projector.forward = lambda pooled: embeddings + 0 * pooled.sum()
    assert distiller(fixed_batch("representation", 32))["spread"].item() == pytest.approx(expected, abs=0.05)


# --- simreg -----------------------------------------------------------------------------------------------------------


def simreg(settings: dict, given: Teacher | list[Teacher] | None, task=None) -> Distiller:
    batch = fixed_batch("representation")
    return build_distiller(
        network("representation", 0),
        given,
        task or Representation(),
        method_config({"name": "simreg", **settings}),
        augment=Augment(AUGMENTATION),
        normalize=Normalize.of(batch.images),
        data=BatchSource(*image_sets(batch), batch_size=12),
    )


@pytest.mark.parametrize("weights", [None, (0.5, 2.0)])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_teacher_is_regressed_by_a_head_of_its_own_on_the_view_that_it_saw(weights, layers) -> None:
    given = teachers(1, 2)
    distiller = simreg({"weights": weights, "head_layers": layers}, given)
    losses, (view,) = looked_at(distiller, fixed_batch("representation"))
    _, pooled = answer(distiller, view)
    terms = []
    for head, teacher in zip(distiller.regressors, given, strict=True):
        seen: list[Tensor] = []
        hook = teacher.module.head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        teacher.module((view - 0.4) / 0.3)
        hook.remove()
        terms.append(simreg_loss(student_feature=head(pooled), teacher_feature=seen[0]))
    expected = sum(weight * term for weight, term in zip(weights or (1, 1), terms, strict=True))
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(torch.stack([losses["teacher_0"], losses["teacher_1"]]), torch.stack(terms))
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in distiller.regressors.parameters())
    assert all(parameter.grad is None for teacher in given for parameter in teacher.module.parameters())


def test_a_teacher_alone_is_given_as_it_is_or_in_a_list() -> None:
    batch = fixed_batch("representation")
    one, other = (simreg({}, given) for given in (teachers(1)[0], teachers(1)))
    assert looked_at(one, batch)[0]["loss"] == looked_at(other, batch)[0]["loss"]


@pytest.mark.parametrize("augmentation", [None, AugmentationConfig(rotation=90)])
def test_with_independent_views_teacher_and_student_see_different_ones(augmentation) -> None:
    (teacher,) = teachers(1)
    asked: list[Tensor] = []
    distiller = simreg({"teacher_view": "independent", "teacher_augmentation": augmentation}, teacher)
    teacher.module.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    _, views = looked_at(distiller, fixed_batch("representation"))
    mine, theirs = views[0], asked[0] * 0.3 + 0.4
    assert not torch.allclose(mine, theirs, atol=1e-3)
    if augmentation is None:
        torch.testing.assert_close(theirs, views[1])
    else:
        assert len(views) == 1
    distiller.eval()
    _, views = looked_at(distiller, fixed_batch("representation"))
    torch.testing.assert_close(views[0], asked[1] * 0.3 + 0.4)


@pytest.mark.parametrize("num_outputs", [3, 7])
def test_networks_of_a_configuration_are_teachers_too(num_outputs: int, tmp_path) -> None:
    path = tmp_path / "teacher.safetensors"
    module = build_model("small_resnet", num_outputs, 1, widths=(4, 6))
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    model = {"options": {"widths": (4, 6)}, "checkpoint": str(path), "num_outputs": num_outputs}
    batch = fixed_batch("representation")
    normalize = Normalize.of(batch.images)
    one, other = simreg({"teachers": (model,)}, None), simreg({}, Teacher(module, normalize))
    other.regressors.load_state_dict(one.regressors.state_dict())
    assert looked_at(one, batch)[0]["loss"] == looked_at(other, batch)[0]["loss"]
    assert len(simreg({"teachers": (model,)}, teachers(1)).regressors) == 2


def augmentations(method: str, **settings) -> AugmentationConfig:
    """What the student's images are changed by, in a call that says `settings` of the training."""
    seen: list[AugmentationConfig] = []
    init = Augment.__init__
    with mock.patch.object(Augment, "__init__", lambda self, config: (seen.append(config), init(self, config))[0]):
        gankd.pretrain(
            network("representation", 0),
            network("representation", 1) if method == "simreg" else None,
            real=fixed_batch("representation").images,
            method={"name": method, **NARROW.get(method, {})},
            **{"steps": 1, "batch_size": 4, **settings},
        )
    return seen[0]


def test_f22_a_teacher_is_asked_about_weak_views_and_two_views_are_compared_strongly() -> None:
    assert augmentations("simreg") == AugmentationConfig(resized_crop=(0.2, 1))
    assert augmentations("vicreg") == augmentations("simsiam") == SELF_SUPERVISED
    assert augmentations("simreg", augmentation={"rotation": 10}) == AugmentationConfig(rotation=10)
    values = {"arms": {name: {"method": {"name": name}} for name in ("simreg", "vicreg")}}
    for given in ({}, {"augmentation": {"rotation": 10}}):
        config = RepresentationConfig.of({**values, **given})
        found = {name: config.of_arm(arm).augmentation for name, arm in config.arms.items()}
        wanted = {"simreg": AugmentationConfig(resized_crop=(0.2, 1)), "vicreg": SELF_SUPERVISED}
        assert found == (dict.fromkeys(found, AugmentationConfig(rotation=10)) if given else wanted)


def test_where_views_repeat_every_teacher_looks_at_each_of_them_once() -> None:
    modules, counts = [network("representation", seed, (4, 6)) for seed in (1, 2)], [0, 0]
    for index, module in enumerate(modules):
        count = lambda _, inputs, index=index: counts.__setitem__(index, counts[index] + len(inputs[0]))  # noqa: E731
        module.register_forward_pre_hook(count)
    images = fixed_batch("representation", 10).images
    arguments = {"real": images, "method": "simreg", "training": TRAINING.replace(steps=10), "batch_size": 5}
    gankd.pretrain(network("representation", 0), modules, **arguments, views=2)
    assert counts == [1 + 2 * 10] * 2  # one black image to learn their widths
    gankd.pretrain(network("representation", 0), modules, **arguments)
    assert counts == [1 + 2 * 10 + 1 + 10 * 5] * 2


def test_repeated_views_train_as_fresh_questions_about_them_would() -> None:
    distiller, answers = simreg({}, teachers(1, 2)), []
    images = fixed_batch("representation", 10).images
    log = lambda values: answers.append(values["loss"])  # noqa: E731
    shared = {"real": images, "method": "simreg", "batch_size": 5, "steps": 6, "log_every": 1, "log": log}
    shared["augmentation"] = AugmentationConfig()
    for views in (1, None):  # without augmentation, one view is all that there is
        modules = [teacher.module for teacher in teachers(1, 2)]
        gankd.pretrain(network("representation", 0), modules, **shared, views=views)
    assert answers[:6] == pytest.approx(answers[6:], rel=1e-4) and len(distiller.regressors) == 2


# --- what they leave alone --------------------------------------------------------------------------------------------


def pretrained(name: str, *, real=None, log=None, **arguments) -> nn.Module:
    batch = fixed_batch("representation", 24)
    own, synthetic = image_sets(batch)
    defaults = {"synthetic": synthetic, "synthetic_fraction": 0.5, "log": log or (lambda values: None)}
    defaults["method"] = {"name": name, **NARROW.get(name, {})}
    return gankd.pretrain(
        network("representation", 0),
        network("representation", 1, (4, 6)) if name == "simreg" else None,
        real=own if real is None else real,
        training=TRAINING,
        **{**defaults, **arguments},
    )


@every_name
def test_the_last_layer_stays_and_can_be_trained_afterwards(name: str) -> None:
    start, student = network("representation", 0), pretrained(name, optimizer="sgd", weight_decay=0.1)
    assert torch.equal(student.head.weight, start.head.weight) and torch.equal(student.head.bias, start.head.bias)
    assert not torch.equal(student.stem[0].weight, start.stem[0].weight)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(module.training for module in student.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())
    assert list(student.state_dict()) == list(start.state_dict())


@every_name
def test_labels_are_not_read(name: str) -> None:
    real = image_sets(fixed_batch("representation", 24))[0]
    plain = pretrained(name)
    for labels in (torch.full((12,), torch.nan), torch.full((12,), -7)):
        assert_equal_state(pretrained(name, real=ImageSet(real.images, labels)), plain)
    assert_equal_state(pretrained(name, real=real.images), plain)


@every_name
def test_a_probe_watches_and_changes_nothing(name: str) -> None:
    logged: list[dict] = []
    assert_equal_state(pretrained(name, online_probe=True, log=logged.append), pretrained(name))
    assert all({"probe", "probe_metric"} <= set(values) for values in logged) and logged


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_probe_learns_the_labels(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    images = 30 + 80 * labels.view(-1, 1, 1, 1) + torch.randint(20, (30, 1, 8, 8), generator=generator)
    real = ImageSet(images.to(torch.uint8), labels if kind == "classification" else 10.0 * labels)
    synthetic = ImageSet(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.zeros(9).long(), is_synthetic=True)
    logged: list[dict] = []
    gankd.pretrain(
        network("representation", 0),
        real=real,
        synthetic=synthetic,  # whose labels would teach the probe that black images are of the first class
        synthetic_fraction=0.25,
        method={"name": "vicreg", **NARROW["vicreg"]},
        online_probe=True,
        steps=80,
        log_every=20,
        learning_rate=0.02,
        batch_size=16,
        augmentation={"rotation": 20},  # brightness is what tells these images apart
        log=logged.append,
    )
    first, last = logged[0]["probe_metric"], logged[-1]["probe_metric"]
    if kind == "classification":
        assert last > 90 and last > first
    else:
        assert last < 3 and last < first  # of labels 0, 10, 20: the mean is wrong by 6.7


@every_name
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(name: str, tmp_path) -> None:
    method = {"name": name, **NARROW.get(name, {})} | ({"standardize": True} if name == "squeeze_and_span" else {})
    whole = pretrained(name, method=method, online_probe=True)

    def die(values: dict) -> None:
        if values["step"] == 3:
            raise Interruption

    with pytest.raises(Interruption):
        pretrained(name, method=method, online_probe=True, directory=tmp_path, log=die)
    logged: list[dict] = []
    resumed = pretrained(name, method=method, online_probe=True, directory=tmp_path, log=logged.append)
    assert [values["step"] for values in logged] == [3, 4]
    assert_equal_state(resumed, whole)


# --- views and norms --------------------------------------------------------------------------------------------------


@every_name
def test_every_image_is_augmented_by_a_draw_of_its_own(name: str) -> None:
    distiller, _ = make(name, "representation", augmentation=AUGMENTATION)
    batch = fixed_batch("representation")
    batch.images[:] = batch.images[:1].clone()
    _, views = looked_at(distiller, batch)
    for view in views:
        assert len(view.unique(dim=0)) == len(view)


@pytest.mark.parametrize(("name", "passes"), [("squeeze_and_span", 3), ("vicreg", 2), ("simsiam", 2), ("simreg", 1)])
def test_every_view_passes_batch_norm_apart(name: str, passes: int) -> None:
    distiller, _ = make(name, "representation")
    distiller(fixed_batch("representation"))
    norms = [part for part in distiller.student.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {norm.num_batches_tracked.item() for norm in norms} == {passes}


# --- beside labels ----------------------------------------------------------------------------------------------------

HEADS = [("classification", "scalar"), ("regression", "scalar"), ("regression", "bins"), ("regression", "gaussian")]


@every_name
@pytest.mark.parametrize(("kind", "head"), HEADS)
def test_with_a_task_weight_the_labels_train_the_whole_student_too(name: str, kind: str, head: str) -> None:
    settings = {"task_weight": 0.5}
    distiller, _ = make(name, kind, settings, head=head, augmentation=AUGMENTATION)
    batch = fixed_batch(kind, 10)
    losses, views = looked_at(distiller, batch)
    seen = [views[0], views[-1]] if name == "squeeze_and_span" else views[:1]
    outputs = torch.cat([answer(distiller, view)[0] for view in seen])
    torch.testing.assert_close(losses["task"], distiller.task.loss(outputs, batch.labels), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.manual_seed(0)
        alone = distiller.learn(batch)[0]["loss"]
    torch.testing.assert_close(losses["loss"], alone + 0.5 * losses["task"], rtol=1e-4, atol=1e-4)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in distiller.student.parameters())


@every_name
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_loss_with_labels_falls_on_a_batch_that_stays_the_same(name: str, kind: str) -> None:
    distiller, _ = make(name, kind, {"task_weight": 1.0})
    batch = fixed_batch(kind)
    before = loss_of(distiller, batch)
    descend(distiller, batch)
    assert loss_of(distiller, batch) < before - 0.1 * abs(before)


def test_a_method_beside_labels_is_distilled_by_name() -> None:
    real, synthetic = image_sets(fixed_batch("classification", 24))
    method = {"name": "squeeze_and_span", **NARROW["squeeze_and_span"], "task_weight": 1.0}
    sets = {"real": real, "synthetic": synthetic, "synthetic_fraction": 0.5}
    student = gankd.distill(network("classification", 0), **sets, method=method, training=TRAINING)
    assert set(gankd.evaluate(student, real)) == {"top1"}
    assert not torch.equal(student.head.weight, network("classification", 0).head.weight)


# --- refusals ---------------------------------------------------------------------------------------------------------

REAL, SYNTHETIC = image_sets(fixed_batch("representation", 24))
WITHOUT = ImageSet(SYNTHETIC.images, SYNTHETIC.labels, is_synthetic=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"real": REAL}, "squeeze_and_span needs synthetic images with their generator's features"),
        ({"real": REAL, "synthetic": WITHOUT, "synthetic_fraction": 0.5}, "generator's features"),
        ({"real": REAL, "synthetic": SYNTHETIC}, "in a share of the batch that is fixed"),
        ({"real": REAL, "synthetic": SYNTHETIC, "synthetic_fraction": 0}, "of 8 samples 0 are synthetic"),
        ({"real": REAL, "synthetic": SYNTHETIC, "synthetic_fraction": 0.1}, "of 8 samples 1 is synthetic"),
        ({"real": REAL, "synthetic": SYNTHETIC, "synthetic_fraction": 0.9}, "of 8 samples 1 is real"),
        ({"method": "kd", "real": REAL}, "method kd is not defined for representation"),
        ({"method": {"name": "vicreg", "task_weight": 1}, "real": REAL}, "vicreg with a task_weight reads labels"),
        ({"method": "simreg", "real": REAL}, "simreg needs a teacher"),
        ({"method": "vicreg", "real": REAL, "views": 2}, "vicreg draws fresh views in every step"),
        ({"method": "vicreg"}, "pretrain needs images"),
        ({"method": "vicreg", "synthetic": WITHOUT, "online_probe": True}, "online_probe reads the labels of real"),
        ({"method": "vicreg", "real": REAL.images, "online_probe": True}, "online_probe reads the labels of real"),
        ({"method": {"name": "simsiam", "projector_layers": 1}, "real": REAL}, "projector_layers"),
        ({"method": {"name": "simreg", "teacher_augmentation": {}}, "real": REAL}, "teacher_view: independent"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        gankd.pretrain(network("representation", 0), **{"training": TRAINING, **arguments})
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_simreg_refuses_weights_and_views_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="1 weights for 2 teachers; give one each"):
        simreg({"weights": (1.0,)}, teachers(1, 2))
    for layers, sentence in {
        0: "head_layers",
        3: "head_layers: 3 is no number of whole perceptrons",
        "cubic": "head_layers",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            simreg({"head_layers": layers}, teachers(1))
    with pytest.raises(ValueError, match="teacher small_resnet of `teachers` has no checkpoint"):
        simreg({"teachers": ({"name": "small_resnet"},)}, None)
    arguments = {"real": REAL, "method": {"name": "simreg", "teacher_view": "independent"}, "training": TRAINING}
    with pytest.raises(ValueError, match="draws fresh views in every step; leave `views` null"):
        gankd.pretrain(network("representation", 0), network("representation", 1), **arguments, views=2)


@every_name
def test_a_student_that_needs_its_last_layer_is_told_that_nothing_would_train_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} trains no last layer; give a task_weight, or pretrain with it"):
        gankd.distill(network("classification", 0), real=image_sets(fixed_batch("classification"))[0], method=name)


def test_shares_that_processes_cannot_split_are_refused() -> None:
    with pytest.raises(ValueError, match="3 synthetic ones of a batch of 8 do not split over 2; change batch_size"):
        built("squeeze_and_span", REAL, SYNTHETIC, {}, synthetic_fraction=0.375, world_size=2)
    assert isinstance(built("vicreg", REAL, SYNTHETIC, {}, synthetic_fraction=0.375, world_size=2), LabelFree)
