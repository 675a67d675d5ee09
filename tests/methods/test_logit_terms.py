"""Methods on outputs: a learned temperature, DKD, DIST, and what a regressor's teacher can teach."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import gankd
from gankd import losses
from gankd.data.loader import Batch, BatchSource
from gankd.data.sets import ImageSet
from gankd.methods import METHODS, Distiller, check_method, method_config
from gankd.methods.temperature import LearnedTemperature, Temperature
from gankd.training import RunContext, TrainingConfig, build_optimizer, fit
from tests.methods.common import fixed_batch, image_sets, make, network

STARTING_TEMPERATURE = 1 + 20 / (1 + math.exp(-1))


def outputs_of(distiller: Distiller, batch: Batch) -> tuple[Tensor, Tensor]:
    """Student's and teacher's outputs on the images, which nothing augments here."""
    view = batch.images.float() / 255
    return distiller.student(distiller.normalize(view)), distiller.teacher(view)


def scalars_of(distiller: Distiller, batch: Batch) -> dict[str, Tensor]:
    student, teacher = outputs_of(distiller, batch)
    labels = (batch.labels - 2) / 1.5  # mean and standard deviation of the task
    return {"student_predictions": student.flatten(), "teacher_predictions": teacher.flatten(), "labels": labels}


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


def prepared(name: str, config: dict | None = None, **options) -> tuple[Distiller, BatchSource]:
    """A method on scalars after its pass over the training data, and these data."""
    distiller, _ = make(name, "regression", config, **options)
    source = BatchSource(*image_sets(fixed_batch("regression")), batch_size=4)
    distiller.prepare(source)
    return distiller, source


def teacher_distances(distiller: Distiller) -> list[float]:
    """|t - y| of the training samples, one at a time."""
    batch = fixed_batch("regression")
    return [
        abs(distiller.task.prediction(distiller.teacher(image[None].float() / 255)).item() - (label.item() - 2) / 1.5)
        for image, label in zip(batch.images, batch.labels, strict=True)
    ]


# --- a learned temperature --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", ["global", "instance"])
def test_ctkd_starts_as_kd_at_the_same_temperature_for_the_student(learn: str) -> None:
    batch = fixed_batch("classification")
    learned, _ = make("ctkd", "classification", {"temperature": {"learn": learn}})
    plain, _ = make("kd", "classification", {"temperature": STARTING_TEMPERATURE})
    terms, expected = learned(batch), plain(batch)
    assert terms["ctkd"].item() == pytest.approx(expected["kd"].item(), rel=1e-4)
    assert terms["ctkd_temperature"].item() == pytest.approx(STARTING_TEMPERATURE, rel=1e-5)
    assert terms["loss"].item() == pytest.approx((terms["task"] * 0.1 + terms["ctkd"] * 0.9).item(), rel=1e-5)
    terms["loss"].backward()
    expected["loss"].backward()
    for one, other in zip(gradients(learned.student), gradients(plain.student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "own"), [("kd", {"alpha": 1}), ("dkd", {"task_weight": 0})])
def test_the_temperature_climbs_what_the_student_descends(name: str, own: dict) -> None:
    """By finite differences of the loss in theta, with all three ways in which it depends on the temperature."""
    batch = fixed_batch("classification")
    distiller, teacher = make(name, "classification", {**own, "temperature": {"learn": "global", "range": 4}})
    teacher.module.head.weight.mul_(50)  # so that the loss depends on the temperature in more than its last digits
    term = distiller.terms[name]
    distiller.eval()  # so that a pass does not change the next
    with torch.no_grad():
        term.temperature.theta.fill_(-1)
    distiller(batch)["loss"].backward()
    values = []
    for theta in (-1.01, -0.99):
        with torch.no_grad():
            term.temperature.theta.fill_(theta)
        values.append(distiller(batch)["loss"].item())
    assert term.temperature.theta.grad.item() == pytest.approx(-(values[1] - values[0]) / 0.02, rel=0.02)


def test_every_sample_has_its_own_temperature_by_which_the_student_is_not_steered() -> None:
    torch.manual_seed(0)
    temperature = Temperature(LearnedTemperature(learn="instance"), num_outputs=3)
    nn.init.normal_(temperature.network[-1].weight)
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    values = temperature(student, teacher)
    assert values.shape == (5, 1) and len(set(values.flatten().tolist())) == 5
    assert ((values > 1) & (values < 21)).all()
    values.sum().backward()
    assert student.grad is None and teacher.grad is None
    assert all(parameter.grad is not None for parameter in temperature.parameters())


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_curriculum_takes_its_share_of_the_run(schedule: str) -> None:
    """At the end of epoch e of 240 the strength is the paper's of epoch e, and a short run has the same shape."""
    temperature = Temperature(LearnedTemperature(schedule=schedule), num_outputs=3)
    for steps_per_epoch in (1, 7):
        for epoch in (1, 2, 5, 10, 11, 240):
            temperature.start_step(epoch * steps_per_epoch - 1, 240 * steps_per_epoch)
            share = min(epoch, 10) / 10
            expected = (1 - math.cos(math.pi * share)) / 2 if schedule == "cosine" else share
            assert temperature.strength == pytest.approx(expected)
    at_once = Temperature(LearnedTemperature(curriculum=0), num_outputs=3)
    at_once.start_step(0, 100)
    assert at_once.strength == 1


@pytest.mark.parametrize("learn", ["global", "instance"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_f3_the_curriculum_weakens_the_steps_of_the_temperature_under_every_optimiser(optimizer, learn: str) -> None:
    source = BatchSource(*image_sets(fixed_batch("classification")), batch_size=12)
    training = TrainingConfig(
        steps=20, batch_size=12, optimizer=optimizer, learning_rate=0.01, schedule="constant", log_every=1
    )
    moves = {}
    for curriculum in (0, 1):
        settings = {"learn": learn, "range": 4, "curriculum": curriculum, "schedule": "linear"}
        distiller, teacher = make("ctkd", "classification", {"temperature": settings})
        teacher.module.head.weight.data.mul_(100)  # for gradients that SGD makes steps of some size of
        logged = []
        fit(distiller, source, training, RunContext(accelerator=Accelerator(), seed=0, log=logged.append))
        temperatures = torch.tensor([line["ctkd_temperature"] for line in logged], dtype=torch.float64)
        moves[curriculum] = temperatures.diff()
    assert moves[1][0] / moves[0][0] == pytest.approx(1 / 20, rel=0.2)
    assert moves[1][:10].abs().sum() < 0.75 * moves[0][:10].abs().sum()


def test_theta_comes_back_from_where_the_sigmoid_is_flat() -> None:
    temperature = Temperature(LearnedTemperature(), num_outputs=3)
    for thrown, kept in ((100.0, 6.0), (-100.0, -6.0), (3.0, 3.0)):
        temperature.theta.data.fill_(thrown)
        temperature.start_step(5, 10)
        assert temperature.theta.item() == kept


@pytest.mark.parametrize(("learn", "decay"), [("global", 0.0), ("global", 5e-4), ("instance", 0.0)])
def test_theta_has_its_own_weight_decay_and_moves_with_the_student(learn: str, decay: float) -> None:
    distiller, _ = make("ctkd", "classification", {"temperature": {"learn": learn, "weight_decay": decay}})
    optimizer = build_optimizer(distiller, TrainingConfig(weight_decay=0.1, learning_rate=0.5))
    theirs = {id(parameter) for parameter in distiller.terms["ctkd"].parameters()}
    groups = [group for group in optimizer.param_groups if theirs & {id(parameter) for parameter in group["params"]}]
    assert len(groups) == 1 and {id(parameter) for parameter in groups[0]["params"]} == theirs
    assert groups[0]["weight_decay"] == decay and groups[0]["rate"] == 1


def test_the_temperature_is_logged_and_kept_in_the_checkpoint_but_not_in_the_student(tmp_path: Path) -> None:
    distiller, _ = make("ctkd", "classification", {"temperature": {"curriculum": 0}})
    source, logged = BatchSource(*image_sets(fixed_batch("classification")), batch_size=6), []
    config = TrainingConfig(steps=4, batch_size=6, log_every=1, learning_rate=0.05)
    fit(distiller, source, config, RunContext(accelerator=Accelerator(), seed=0, directory=tmp_path, log=logged.append))
    temperatures = [line["ctkd_temperature"] for line in logged]
    assert temperatures[0] == pytest.approx(STARTING_TEMPERATURE)
    assert len(set(temperatures)) == 4, "it learns"
    assert distiller.state_dict()["terms.ctkd.temperature.theta"].item() != 1
    assert list(distiller.deployable().state_dict()) == list(network("classification", 0).state_dict())


def test_a_certain_teacher_leaves_the_temperature_of_dkd_finite() -> None:
    """A class whose probability is exactly 0 must not turn into 0 / 0 in the gradient of the temperature."""
    distiller, teacher = make("dkd", "classification", {"temperature": {"learn": "global"}})
    with torch.no_grad():
        teacher.module.head.weight.mul_(1e5)
        distiller.terms["dkd"].temperature.theta.fill_(-6)
    terms = distiller(fixed_batch("classification"))
    terms["loss"].backward()
    assert terms["loss"].isfinite() and distiller.terms["dkd"].temperature.theta.grad.isfinite().all()


@pytest.mark.parametrize("config", ["ctkd", {"name": "kd", "temperature": {"learn": "instance"}}])
@pytest.mark.parametrize("head", ["scalar", "gaussian"])
def test_a_learned_temperature_needs_a_softmax(config, head: str) -> None:
    settings = method_config(config)
    with pytest.raises(ValueError, match="ctkd learns a softmax temperature; set task.head: bins"):
        check_method(settings, "regression", has_teacher=True, head=head)
    with pytest.raises(ValueError, match="set task.head: bins"):
        check_method(
            method_config({"name": "combined", "terms": [settings]}), "regression", has_teacher=True, head=head
        )
    with pytest.raises(ValueError, match="set task.head: bins"):
        make(settings.name, "regression", settings, head=head)
    check_method(settings, "regression", has_teacher=True, head="bins")
    check_method(settings, "classification", has_teacher=True)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "kd", "temperature": 0}, "temperature: Input should be greater than 0, got 0"),
        ({"name": "kd", "temperature": {"lern": "global"}}, "temperature: unknown key 'lern'; did you mean 'learn'?"),
        (
            {"name": "dkd", "temperature": {"curriculum": 2}},
            "temperature.curriculum: .* less than or equal to 1, got 2",
        ),
        ({"name": "dist", "temperature": {"learn": "global"}}, "temperature: Input should be a valid number"),
    ],
)
def test_a_mistaken_temperature_is_refused_in_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        method_config(values)
    assert "\n" not in str(caught.value)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_dkd_is_its_loss_on_the_labels_of_the_batch_beside_the_task() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("dkd", "classification", {"alpha": 0.5, "beta": 3, "temperature": 2, "weight": 1.5})
    student, teacher = outputs_of(distiller, batch)
    expected = losses.dkd_loss(
        student_logits=student, teacher_logits=teacher, labels=batch.labels, alpha=0.5, beta=3, temperature=2
    )
    terms = distiller(batch)
    assert terms["dkd"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx((terms["task"] + 1.5 * expected).item(), rel=1e-4)


def test_the_weight_of_dkd_rises_linearly_over_a_twelfth_of_the_run() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("dkd", "classification")
    distiller.eval()
    for step, factor in ((0, 1 / 20), (9, 0.5), (19, 1), (20, 1), (239, 1)):
        distiller.start_step(step, 240, 1)
        terms = distiller(batch)
        assert terms["loss"].item() == pytest.approx((terms["task"] + factor * terms["dkd"]).item(), rel=1e-5)
    for warmup, num_steps in ((0, 240), (20 / 240, 3)):
        distiller, _ = make("dkd", "classification", {"warmup": warmup})
        distiller.start_step(0, num_steps, 1)
        assert distiller.terms["dkd"].factor == 1


def test_dist_is_its_loss_beside_the_task() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("dist", "classification", {"beta": 0.5, "gamma": 2})
    student, teacher = outputs_of(distiller, batch)
    expected = losses.dist_loss(student_logits=student, teacher_logits=teacher, beta=0.5, gamma=2, temperature=4)
    terms = distiller(batch)
    assert terms["dist"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx((terms["task"] + 2 * expected).item(), rel=1e-4)


# --- regression heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kd", "dist"])
def test_bins_are_distilled_like_classes(name: str) -> None:
    batch = fixed_batch("regression")
    distiller, _ = make(name, "regression", {"temperature": 2}, head="bins")
    student, teacher = outputs_of(distiller, batch)
    assert student.shape[1] == distiller.task.num_outputs > 1
    loss = losses.kd_loss if name == "kd" else losses.dist_loss
    expected = loss(student_logits=student, teacher_logits=teacher, temperature=2)
    assert distiller(batch)[name].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_gaussian_head_follows_the_teachers_uncertainty_too() -> None:
    batch = fixed_batch("regression")
    distiller, _ = make("kd", "regression", head="gaussian")
    student, teacher = outputs_of(distiller, batch)
    variances = student[:, 1].exp(), teacher[:, 1].exp()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(teacher[:, 0], variances[1].sqrt()),
        torch.distributions.Normal(student[:, 0], variances[0].sqrt()),
    ).mean()
    assert distiller(batch)["kd"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_huber_loss_of_kd_turns_linear_at_delta() -> None:
    batch = fixed_batch("regression")
    distiller, _ = make("kd", "regression", {"loss": "huber", "delta": 0.01})
    values = scalars_of(distiller, batch)
    sizes = (values["student_predictions"] - values["teacher_predictions"]).abs()
    expected = torch.where(sizes <= 0.01, sizes**2 / 2, 0.01 * (sizes - 0.005)).mean()
    assert distiller(batch)["kd"].item() == pytest.approx(expected.item(), rel=1e-4)


# --- scalar targets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["huber", "l2"])
def test_a_teacher_that_is_passed_is_silent_and_one_that_is_not_pulls_to_the_label(loss: str) -> None:
    batch = fixed_batch("regression")
    distiller, _ = make("teacher_bounded", "regression", {"loss": loss, "margin": 0.1})
    total, base, bounded = losses.teacher_bounded_regression_loss(
        **scalars_of(distiller, batch), margin=0.1, weight=0.5, loss=loss
    )
    terms = distiller(batch)
    assert set(terms) == {"loss", "task", "teacher_bounded"}
    assert terms["task"].item() == pytest.approx(base.item(), rel=1e-4)
    assert terms["teacher_bounded"].item() == pytest.approx(bounded.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-4)


def test_a_teacher_is_imitated_as_far_as_its_errors_over_the_training_set_allow() -> None:
    batch = fixed_batch("regression")
    distiller, _ = prepared("attentive_imitation")
    errors = [distance**2 for distance in teacher_distances(distiller)]
    assert distiller.terms["attentive_imitation"].error_range.item() == pytest.approx(
        max(errors) - min(errors), rel=1e-4
    )
    total, _, imitation = losses.attentive_imitation_loss(
        **scalars_of(distiller, batch), error_range=max(errors) - min(errors), alpha=0.5
    )
    terms = distiller(batch)
    assert terms["attentive_imitation"].item() == pytest.approx(imitation.item(), rel=1e-3)
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-3)


def test_labels_that_the_teacher_contradicts_are_left_out_and_the_teacher_imitated_everywhere() -> None:
    batch = fixed_batch("regression")
    distiller, _ = prepared("outlier_rejection", {"two_heads": False})
    threshold = 3 * 1.4826 * float(torch.tensor(teacher_distances(distiller)).double().quantile(0.5))
    term = distiller.terms["outlier_rejection"]
    assert term.threshold.item() == pytest.approx(threshold, rel=1e-4)
    term.threshold.fill_(threshold / 4)  # so that some are rejected: these labels are not wrong
    total, kept, imitation = losses.teacher_outlier_rejection_loss(
        **scalars_of(distiller, batch), threshold=threshold / 4
    )
    terms = distiller(batch)
    assert terms["task"].item() == pytest.approx(kept.item(), rel=1e-3)
    assert terms["outlier_rejection"].item() == pytest.approx(imitation.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-3)
    assert not math.isclose(kept.item(), distiller.task.loss(outputs_of(distiller, batch)[0], batch.labels).item())


def test_a_second_head_imitates_so_that_the_deployed_one_sees_labels_only() -> None:
    batch = fixed_batch("regression")
    distiller, _ = make("outlier_rejection", "regression", {"task_weight": 0})
    term = distiller.terms["outlier_rejection"]
    feature = distiller.student.pool(
        distiller.student.stages(distiller.student.stem(distiller.normalize(batch.images.float() / 255)))
    )
    expected = (term.head(feature).flatten() - outputs_of(distiller, batch)[1].flatten()).square().mean()
    terms = distiller(batch)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    terms["loss"].backward()
    assert all(parameter.grad is None for parameter in distiller.student.head.parameters())
    assert term.head.weight.grad.abs().sum() > 0
    assert not any("terms" in key for key in distiller.deployable().state_dict())


def test_a_batch_whose_labels_are_all_rejected_still_trains_the_imitation() -> None:
    distiller, _ = make("outlier_rejection", "regression", {"two_heads": False})
    distiller.terms["outlier_rejection"].threshold.fill_(0)
    terms = distiller(fixed_batch("regression"))
    assert terms["task"].item() == 0 and terms["task"].requires_grad
    terms["loss"].backward()
    assert all(gradient.isfinite().all() for gradient in gradients(distiller.student))


@pytest.mark.parametrize("head", ["scalar", "bins", "gaussian"])
def test_hints_count_as_much_as_the_teachers_prediction(head: str) -> None:
    batch = fixed_batch("regression")
    distiller, _ = prepared("attentive_hint", head=head)
    term = distiller.terms["attentive_hint"]
    errors = torch.tensor([distance**2 for distance in teacher_distances(distiller)])
    confidences = (1 - errors / (errors.max() - errors.min())).clamp(0, 1)
    view = batch.images.float() / 255
    student = distiller.student.stages[:2](distiller.student.stem(distiller.normalize(view)))
    module = distiller.teacher.module
    teacher = module.stages[:2](module.stem(distiller.teacher.normalize(view)))
    expected = (confidences * (term.regressors[0](student) - teacher).square().flatten(1).mean(1)).mean()
    assert distiller(batch)["attentive_hint"].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["attentive_imitation", "attentive_hint", "outlier_rejection"])
def test_what_was_measured_survives_in_the_checkpoint(name: str) -> None:
    distiller, _source = prepared(name)
    fresh, _ = make(name, "regression")
    fresh.load_state_dict(distiller.state_dict())
    key = "threshold" if name == "outlier_rejection" else "error_range"
    value = getattr(fresh.terms[name], key)
    assert value.isfinite() and torch.equal(value, getattr(distiller.terms[name], key))
    in_files = BatchSource(*image_sets(fixed_batch("regression")), batch_size=4, memory_budget=0, workers=0)
    again, _ = make(name, "regression", data=fixed_batch("regression"))
    again.terms[name].prepare(dataclasses.replace(again.setup, data=in_files))
    torch.testing.assert_close(getattr(again.terms[name], key), value)


@pytest.mark.parametrize("name", ["teacher_bounded", "attentive_imitation", "outlier_rejection"])
def test_methods_on_scalar_predictions_are_refused_where_there_are_none(name: str) -> None:
    METHODS[name].check("regression", has_teacher=True)
    with pytest.raises(ValueError, match=f"method {name} is not defined for classification; .* Use method "):
        METHODS[name].check("classification", has_teacher=True)
    with pytest.raises(ValueError, match=f"method {name} is not defined for task.head: bins"):
        METHODS[name].check("regression", has_teacher=True, head="bins")


def test_two_methods_with_a_label_loss_of_their_own_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="teacher_bounded and outlier_rejection each bring a loss on the labels"):
        method_config({"name": "combined", "terms": ["teacher_bounded", "outlier_rejection"]})
    distiller, _ = make("combined", "regression", {"terms": ["sp", "teacher_bounded"]})
    batch = fixed_batch("regression")
    base = losses.teacher_bounded_regression_loss(**scalars_of(distiller, batch))[1]
    assert distiller(batch)["task"].item() == pytest.approx(base.item(), rel=1e-4)


# --- teacher assistants -----------------------------------------------------------------------------------------------


def test_in_a_chain_every_student_teaches_the_next(tmp_path: Path) -> None:
    batch = fixed_batch("classification")
    settings = {"real": ImageSet(batch.images, batch.labels), "method": "kd", "steps": 3, "batch_size": 6}
    networks = [network("classification", seed, widths) for seed, widths in enumerate([(8,), (6,), (4,)])]
    teacher, assistant, student = copy.deepcopy(networks)
    chain = gankd.distill_chain(teacher, [assistant, student], directory=tmp_path, checkpoint_every=1, **settings)
    assert chain == [assistant, student] and not student.training

    by_hand = gankd.distill(networks[1], networks[0], **settings)
    by_hand = gankd.distill(networks[2], by_hand, **settings)
    for key, value in by_hand.state_dict().items():
        assert torch.equal(value, student.state_dict()[key]), key
    assert sorted(path.parent.name for path in tmp_path.glob("*/checkpoint.pt")) == ["0", "1"]


def test_a_chain_needs_students_and_a_network_for_each() -> None:
    one = network("classification", 0)
    with pytest.raises(ValueError, match="distill_chain needs students"):
        gankd.distill_chain(one, [])
    with pytest.raises(ValueError, match="the same network twice"):
        gankd.distill_chain(one, [network("classification", 1), one])
