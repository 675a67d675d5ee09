"""Terms on features and relations: which features they read, what their heads are, what is trained and when."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gankd import losses
from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import BatchSource
from gankd.methods import build_distiller, method_config
from gankd.methods.taps import ConvRegressor
from gankd.models import build_model
from gankd.models.inputs import Normalize
from gankd.models.taps import batch_norms_before_relu, forward_with_features
from gankd.models.teacher import Teacher
from gankd.training import RunContext, TrainingConfig, build_optimizer, fit
from tests.methods.common import TASKS, fixed_batch, image_sets, make

ON_MAPS = ["fitnet", "at", "nst", "vid", "ab", "ft", "reviewkd", "ofd"]
ON_VECTORS = ["rkd", "pkt", "cc"]
TWO_STAGES = ["ab", "fsp", "ft"]
EVERY = [*ON_MAPS, *ON_VECTORS, "fsp", "sp"]
BATCH = fixed_batch("classification")


def made(name: str, config: dict | None = None, widths=((4, 8), (4, 8, 16)), **others):
    """(distiller, its only term); fsp with networks of like widths."""
    student, teacher = ((4, 8), (4, 8)) if name == "fsp" else widths
    distiller, _ = make(name, "classification", config, student_widths=student, teacher_widths=teacher, **others)
    return distiller, distiller.terms[name]


def features(distiller, *, preact: tuple[bool, bool] = (False, False)) -> tuple[list[Tensor], list[Tensor]]:
    """[f0, ..., pooled] of the student and of the teacher for the batch's plain images, read outside of the method."""
    view = BATCH.images.float() / 255
    _, student = forward_with_features(distiller.student, distiller.normalize(view), preact[0])
    with torch.no_grad():
        _, teacher = forward_with_features(distiller.teacher.module, distiller.teacher.normalize(view), preact[1])
    return student, teacher


def term_value(distiller, name: str) -> Tensor:
    term = distiller.terms[name]
    return term(distiller.outputs(BATCH, {name: term}))


# --- each term is its equation on its features ------------------------------------------------------------------------


def test_fitnet_regresses_the_second_stage() -> None:
    distiller, term = made("fitnet")
    (_, _, student, _), (_, _, teacher, *_) = features(distiller)
    expected = (term.regressors[0](student) - teacher).square().mean()
    torch.testing.assert_close(term_value(distiller, "fitnet"), expected)
    torch.testing.assert_close(
        distiller(BATCH)["loss"], F.cross_entropy(distiller.student(_input(distiller)), BATCH.labels) + 100 * expected
    )


@pytest.mark.parametrize(("name", "loss"), [("at", "attention_transfer_loss"), ("nst", "nst_loss")])
def test_at_and_nst_sum_over_the_last_stages_of_networks_with_unlike_numbers_of_them(name: str, loss: str) -> None:
    distiller, _ = made(name)
    (_, *student, _), (_, _, *teacher, _) = features(distiller)  # without the stem; the deeper one's first stage
    assert len(student) == len(teacher) == 2
    expected = getattr(losses, loss)(student_features=student, teacher_features=teacher)
    torch.testing.assert_close(term_value(distiller, name), expected)


@pytest.mark.parametrize(("name", "loss"), [("rkd", "rkd_loss"), ("pkt", "pkt_loss")])
def test_rkd_and_pkt_compare_the_pooled_vectors(name: str, loss: str) -> None:
    distiller, _ = made(name)
    student, teacher = features(distiller)
    expected = getattr(losses, loss)(student_feature=student[-1], teacher_feature=teacher[-1])
    torch.testing.assert_close(term_value(distiller, name), expected)


@pytest.mark.parametrize("form", ["neighbours", "kernel"])
def test_cc_embeds_the_pooled_vectors_and_trains_both_embeddings(form: str) -> None:
    distiller, term = made("cc", {"form": form})
    student, teacher = features(distiller)
    embedded = term.student_embeddings[0](student[-1]), term.teacher_embeddings[0](teacher[-1])
    assert embedded[0].shape == embedded[1].shape == (12, 128)
    expected = losses.correlation_congruence_loss(
        student_embedding=embedded[0], teacher_embedding=embedded[1], form=form
    )
    loss = term_value(distiller, "cc")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in term.parameters())


def test_vid_starts_at_its_variance_and_trains_it_without_decay() -> None:
    distiller, term = made("vid")
    (_, *student, _), (_, _, *teacher, _) = features(distiller)
    expected = 0.0
    for regressor, s, t in zip(term.regressors, student, teacher, strict=True):
        variance = F.softplus(regressor.log_scale) + 1e-5
        torch.testing.assert_close(variance, torch.full_like(variance, 5.0))
        first, second, third = regressor.convolutions
        mean = third(F.relu(second(F.relu(first(F.adaptive_avg_pool2d(s, t.shape[2:]))))))
        expected = expected + ((mean - t).square() / 5 + math.log(5)).mean() / 2
    loss = term_value(distiller, "vid")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    plain = {id(p) for group in build_optimizer(distiller, TrainingConfig()).param_groups[1:] for p in group["params"]}
    for regressor in term.regressors:
        assert regressor.log_scale.grad.abs().min() > 0
        assert id(regressor.log_scale) in plain
        assert all(convolution.bias is None for convolution in regressor.convolutions)
    assert any("log_scale" in key for key in distiller.state_dict())


@given(variance=st.floats(1e-3, 500))
@settings(max_examples=10, deadline=None)
def test_vid_takes_any_initial_variance(variance: float) -> None:
    _, term = made("vid", {"initial_variance": variance})
    found = F.softplus(term.regressors[0].log_scale.detach()) + 1e-5
    torch.testing.assert_close(found, torch.full_like(found, variance), rtol=1e-3, atol=0)


def test_fsp_takes_the_stem_and_every_stage() -> None:
    distiller, _ = made("fsp")
    (*student, _), (*teacher, _) = features(distiller)
    assert len(student) == 3
    expected = losses.fsp_loss(student_features=student, teacher_features=teacher)
    torch.testing.assert_close(term_value(distiller, "fsp"), expected)


def test_ab_compares_signs_before_the_relu_through_connectors_without_one() -> None:
    distiller, term = made("ab")
    (_, *student, _), (_, _, *teacher, _) = features(distiller, preact=(True, True))
    assert all((feature < 0).any() for feature in (*student, *teacher))
    connected = [connect(s) for connect, s in zip(term.connectors, student, strict=True)]
    assert all((feature < 0).any() for feature in connected)
    expected = losses.activation_boundary_loss(student_features=connected, teacher_features=teacher)
    torch.testing.assert_close(term_value(distiller, "ab"), expected)


def test_ab_connects_nothing_where_the_shapes_agree() -> None:
    _, term = made("ab", widths=((4, 8), (4, 16)))
    assert isinstance(term.connectors[0], nn.Identity) and isinstance(term.connectors[1], ConvRegressor)


def test_ft_compares_translated_and_paraphrased_factors_of_the_last_stage() -> None:
    distiller, term = made("ft")
    (*_, student, _), (*_, teacher, _) = features(distiller)
    factors = term.translators[0](student), term.paraphrasers[0].encoder(teacher)
    assert factors[0].shape[1] == factors[1].shape[1] == 8  # half of the teacher's 16 channels
    pooled = F.adaptive_avg_pool2d(factors[0], factors[1].shape[2:])
    q_s, q_t = (F.normalize(factor.square().mean(dim=1).flatten(1), dim=1) for factor in (pooled, factors[1]))
    torch.testing.assert_close(term_value(distiller, "ft"), (q_s - q_t).abs().mean())
    assert any(isinstance(module, nn.BatchNorm2d) for module in term.translators.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in term.paraphrasers.modules())
    assert term.paraphrasers[0](teacher).shape == teacher.shape


def test_reviewkd_fuses_from_the_deepest_and_meets_the_teacher_before_its_relu() -> None:
    distiller, term = made("reviewkd")
    (_, *student, s_pooled), (_, _, *teacher, t_pooled) = features(distiller, preact=(False, True))
    student, teacher = [*student, s_pooled[:, :, None, None]], [*teacher, t_pooled[:, :, None, None]]
    outputs, review = [], None
    for fuse, s, t in reversed(list(zip(term.fusions, student, teacher, strict=True))):
        x = fuse.enter(s)
        assert x.shape[1] == 8  # the width of the student's pooled vector
        if review is not None:
            y = F.interpolate(review, x.shape[2:], mode="nearest")
            z = torch.sigmoid(F.conv2d(torch.cat([x, y], dim=1), fuse.attention.weight, fuse.attention.bias))
            x = x * z[:, :1] + y * z[:, 1:]
        review = x
        outputs.append(fuse.leave(F.interpolate(x, t.shape[2:], mode="nearest")))
        assert outputs[-1].shape == t.shape
    expected = losses.hcl_loss(student_features=outputs, teacher_features=teacher[::-1])
    torch.testing.assert_close(term_value(distiller, "reviewkd"), expected)


def test_f22_reviewkd_begins_as_published() -> None:
    """Kaiming's uniform initialisation with a = 1: within sqrt(3 / inputs), where torch's default is sqrt(1 / inputs)."""
    _, term = made("reviewkd")
    for fuse in term.fusions:
        for convolution in (fuse.enter[0], fuse.leave[0]):
            bound = math.sqrt(3 / convolution.weight[0].numel())
            assert 0.9 * bound < convolution.weight.abs().max() <= bound


def test_the_weight_of_reviewkd_rises_over_a_twelfth_of_the_run() -> None:
    distiller, term = made("reviewkd")
    factors = []
    for step in range(240):
        distiller.start_step(step, 240, 1)
        factors.append(term.factor)
    assert factors == pytest.approx([min((step + 1) / 20, 1) for step in range(240)])
    _, constant = made("reviewkd", {"warmup": 0})
    constant.start_step(0, 240, 1)
    assert constant.factor == 1


def test_ofd_halves_the_stages_upwards_and_takes_margins_from_the_teachers_batch_norms() -> None:
    distiller, term = made("ofd")
    (_, *student, _), (_, _, *teacher, _) = features(distiller, preact=(True, True))
    norms = batch_norms_before_relu(distiller.teacher.module)[-2:]
    expected = 0.0
    for weight, connect, s, t, norm in zip((0.5, 1), term.connectors, student, teacher, norms, strict=True):
        margin = losses.ofd_margin(bn_weight=norm.weight, bn_bias=norm.bias)
        assert torch.equal(connect.margin, margin)
        expected = expected + weight * losses.ofd_loss(student_feature=connect(s), teacher_feature=t, margin=margin)
    torch.testing.assert_close(term_value(distiller, "ofd"), expected)
    assert {key for key in distiller.state_dict() if key.endswith("margin")}
    assert not any("margin" in name for name, _ in distiller.named_parameters())


def test_ofd_takes_margins_from_named_batch_norms_of_a_foreign_teacher() -> None:
    teacher = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    nn.init.uniform_(teacher[1].bias)
    distiller = built("ofd", teacher=teacher, student_taps=("stages.1.relu:input",), teacher_taps=("1",))
    expected = losses.ofd_margin(bn_weight=teacher[1].weight, bn_bias=teacher[1].bias)
    assert torch.equal(distiller.terms["ofd"].connectors[0].margin, expected)
    assert distiller(BATCH)["ofd"].isfinite()


# --- regressors -------------------------------------------------------------------------------------------------------


@given(height=st.integers(1, 17), width=st.integers(1, 17), taller=st.integers(1, 17), wider=st.integers(1, 17))
@settings(max_examples=40, deadline=None)
def test_a_regressor_gives_the_teachers_shape(height: int, width: int, taller: int, wider: int) -> None:
    small = (min(height, taller), min(width, wider))
    large = (max(height, taller), max(width, wider))
    for source, target in ((small, large), (large, small)):
        regressor = ConvRegressor((2, *source), (3, *target)).eval()
        output = regressor(torch.rand(2, 2, *source))
        assert output.shape == (2, 3, *target)
        assert (output >= 0).all()
        kernel, stride = regressor.convolution.kernel_size, regressor.convolution.stride
        assert all(k >= s for k, s in zip(kernel, stride, strict=True)), "no position is left out"


@pytest.mark.parametrize(
    ("sizes", "kind", "kernel", "stride", "padding"),
    [
        ((16, 8), nn.Conv2d, 3, 2, 1),
        ((8, 16), nn.ConvTranspose2d, 4, 2, 1),
        ((8, 8), nn.Conv2d, 1, 1, 0),
        ((7, 4), nn.Conv2d, 4, 1, 0),
    ],
)
def test_a_regressor_has_the_published_kernels(sizes, kind: type, kernel: int, stride: int, padding: int) -> None:
    convolution = ConvRegressor((2, sizes[0], sizes[0]), (3, sizes[1], sizes[1])).convolution
    assert isinstance(convolution, kind)
    assert convolution.kernel_size == (kernel, kernel)
    assert convolution.stride == (stride, stride)
    assert convolution.padding == (padding, padding)


def test_a_regressor_does_not_turn_a_tall_map_into_a_wide_one() -> None:
    with pytest.raises(ValueError, match="no single convolution takes a student's map of 4x8 to a teacher's of 8x4"):
        ConvRegressor((2, 4, 8), (2, 8, 4))


# --- two stages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_ab_and_fsp_train_the_student_on_the_term_first_and_on_the_task_alone_then(name: str) -> None:
    distiller, term = made(name)
    first, training = distiller.first_stage(TrainingConfig(steps=80))
    assert training.steps == 10 and training.schedule == "constant"
    terms = first(BATCH)
    torch.testing.assert_close(terms["loss"], term_value(distiller, name))  # whatever its weight
    terms["loss"].backward()
    assert all(p.grad is not None for p in first.parameters() if p.requires_grad), "processes wait for every gradient"
    assert not distiller.student.head.weight.grad.any(), "what the term does not reach does not move"
    assert all(p.grad.any() for p in distiller.student.stages.parameters() if p.ndim > 1)
    assert all(p.requires_grad for p in term.parameters())

    distiller.prepare(None)
    then = distiller(BATCH)
    assert set(then) == {"loss", "task"}
    torch.testing.assert_close(then["loss"], F.cross_entropy(distiller.student(_input(distiller)), BATCH.labels))
    assert not any(p.requires_grad for p in term.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_f22_the_first_stage_decays_nothing_that_its_loss_does_not_reach(name: str, optimizer: str) -> None:
    distiller, _ = made(name)
    before = {key: value.clone() for key, value in distiller.student.state_dict().items()}
    config = TrainingConfig(steps=4, optimizer=optimizer, weight_decay=0.5, decay_all=True)
    first, config = distiller.first_stage(config)
    optimizer = build_optimizer(first, config)
    for _ in range(3):
        optimizer.zero_grad()
        first(BATCH)["loss"].backward()
        optimizer.step()
    after = distiller.student.state_dict()
    unmoved = {key for key in after if torch.equal(after[key], before[key]) and "num_batches" not in key}
    assert unmoved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["at", "nst", "ft"])
def test_f19_maps_of_a_single_position_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"{name} compares how a map differs from position to position.*images of 4 x 4"
    ):
        make(name, "classification", {"student_taps": ["stages.2"], "teacher_taps": ["stages.2"]}, pixels=4)


def test_ft_trains_the_paraphraser_first_and_everything_else_then() -> None:
    distiller, term = made("ft")
    before = {key: value.clone() for key, value in distiller.student.state_dict().items()}
    paraphraser, translator = list(term.paraphrasers.parameters()), list(term.translators.parameters())
    assert not any(p.requires_grad for p in paraphraser), "a resumed run has had its first stage"

    first, _ = distiller.first_stage(TrainingConfig(steps=80))
    trained = {id(p) for p in first.parameters() if p.requires_grad}
    assert trained == {id(p) for p in paraphraser}
    optimizer = torch.optim.Adam([p for p in first.parameters() if p.requires_grad], lr=1e-2)
    reconstruction = []
    for _ in range(20):
        terms = first(BATCH)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        reconstruction.append(terms["loss"].item())
    assert reconstruction[-1] < 0.9 * reconstruction[0]
    _, (*_, teacher, _) = features(distiller)
    distiller.student.load_state_dict(before)  # reading its features has moved the batch norms
    torch.testing.assert_close(first(BATCH)["loss"], (term.paraphrasers[0](teacher) - teacher).square().mean())
    after = distiller.student.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "the student does not take part"

    distiller.prepare(None)
    terms = distiller(BATCH)
    terms["loss"].backward()
    torch.testing.assert_close(terms["loss"], terms["task"] + 200 * terms["ft"])
    assert not any(p.requires_grad for p in paraphraser)
    assert all(p.grad is not None for p in (*translator, *distiller.student.parameters()))


@pytest.mark.parametrize("name", TWO_STAGES)
def test_the_loop_runs_both_stages_and_a_resumed_run_goes_on_in_the_second(name: str, tmp_path) -> None:
    def source() -> BatchSource:
        return BatchSource(*image_sets(BATCH), batch_size=6)

    config, logged = TrainingConfig(steps=8, batch_size=6, log_every=1, checkpoint_every=4), []

    def run(directory, until: int | None = None):
        distiller, _ = made(name)

        def log(values: dict) -> None:
            logged.append(values)
            if until is not None and values["stage"] == "student" and values["step"] == until:
                raise KeyboardInterrupt

        fit(
            distiller,
            source(),
            config,
            RunContext(accelerator=Accelerator(), seed=0, name="student", directory=directory, log=log),
        )
        return distiller.state_dict()

    whole = run(tmp_path / "whole")
    assert [(line["stage"], line["step"]) for line in logged] == [
        ("student, first stage", 1),
        *(("student", step) for step in range(1, 9)),
    ]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut off", until=6)
    logged.clear()
    resumed = run(tmp_path / "cut off")
    assert [(line["stage"], line["step"]) for line in logged] == [("student", step) for step in range(5, 9)]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_ab_beside_kd_leaves_the_second_stage_to_kd() -> None:
    config = {"terms": [{"name": "ab"}, {"name": "kd", "alpha": 1}]}
    distiller, _ = make("combined", "classification", config, student_widths=(4, 8), teacher_widths=(4, 8, 16))
    first, _ = distiller.first_stage(TrainingConfig(steps=80))
    assert set(first(BATCH)) == {"loss", "ab"}
    distiller.prepare(None)
    assert set(distiller(BATCH)) == {"loss", "kd", "task"}


# --- networks of every kind -------------------------------------------------------------------------------------------


def built(name: str, *, teacher: nn.Module, student: nn.Module | None = None, **config):
    batch = fixed_batch("classification")
    return build_distiller(
        student if student is not None else build_model("small_resnet", 3, in_channels=1, widths=(4, 8)),
        Teacher(teacher, Normalize.of(batch.images)),
        TASKS["classification"],
        method_config({"name": name, **config}),
        augment=Augment(AugmentationConfig()),
        normalize=Normalize.of(batch.images),
        data=BatchSource(*image_sets(batch), batch_size=len(batch.labels)),
    )


@pytest.mark.parametrize(
    "widths", [((8, 16), (8, 16, 32)), ((4, 8, 16), (4, 8)), ((4, 8, 16), (8,)), ((4,), (8, 8, 8))]
)
@pytest.mark.parametrize("name", [*ON_MAPS, *ON_VECTORS, "sp"])
def test_unlike_numbers_of_stages_and_an_odd_batch_are_fine(name: str, widths) -> None:
    distiller, term = made(name, widths=widths)
    terms = distiller(fixed_batch("classification", 5))
    assert terms["loss"].isfinite()
    terms["loss"].backward()
    if term.factor > 0:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters() if p.requires_grad)
    if term.first_stage_share > 0:
        assert distiller.first_stage(TrainingConfig())[0](fixed_batch("classification", 5))["loss"].isfinite()


def test_fsp_pairs_the_last_maps_of_networks_with_unlike_numbers_of_stages() -> None:
    teacher = build_model("small_resnet", 3, in_channels=1, widths=(4, 4, 8))
    distiller = built("fsp", teacher=teacher)
    assert distiller.terms["fsp"].student_taps == ["stem", "stages.0", "stages.1"]
    assert distiller.terms["fsp"].teacher_taps == ["stages.0", "stages.1", "stages.2"]


@pytest.mark.parametrize("name", EVERY)
def test_a_term_survives_its_checkpoint(name: str) -> None:
    """Heads and margins are in the state: another distiller of other weights computes the same after loading it."""
    distiller, term = made(name)
    with torch.no_grad():
        for parameter in term.parameters():
            parameter += 0.1
    other, _ = made(name)
    other.load_state_dict(distiller.state_dict())
    torch.testing.assert_close(term_value(other, name), term_value(distiller, name))


@pytest.mark.parametrize("name", [*ON_MAPS, "sp"])
def test_taps_may_be_named_and_are_summed_over(name: str) -> None:
    preact = name in {"ab", "ofd"}
    paths = ("stages.1.relu:input", "stages.0.relu:input") if preact else ("stages.1", "stages.0")
    _, term = made(name, {"student_taps": paths, "teacher_taps": paths})
    assert term.student_taps == term.teacher_taps == list(paths)
    distiller, _ = made(name, {"student_taps": paths, "teacher_taps": paths})
    assert term_value(distiller, name).isfinite()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_fsp_refuses_unlike_widths() -> None:
    message = "fsp needs a student of the teacher's widths, but 'stem' has 4 channels and the teacher's 'stem' has 8"
    with pytest.raises(ValueError, match=message):
        make("fsp", "classification", student_widths=(4, 8), teacher_widths=(8, 16))


def test_fsp_refuses_a_single_map() -> None:
    taps = {"student_taps": ("stem",), "teacher_taps": ("stem",)}
    with pytest.raises(ValueError, match="fsp describes the flow between consecutive maps and needs two"):
        made("fsp", taps)


@pytest.mark.parametrize("network", ["ShuffleV1", "foreign"])
def test_ofd_refuses_a_teacher_whose_batch_norms_are_not_known(network: str) -> None:
    foreign = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    teacher = foreign if network == "foreign" else build_model(network, 3, in_channels=1)
    with pytest.raises(
        ValueError, match=f"which batch norms end the stages of {type(teacher).__name__} is not defined"
    ):
        built("ofd", teacher=teacher)
    with pytest.raises(ValueError, match="which one belongs to '.*' of teacher_taps is not known; name a batch norm"):
        built(
            "ofd",
            teacher=teacher,
            student_taps=("stages.1",),
            teacher_taps=(next(iter(dict(teacher.named_children()))),),
        )


@pytest.mark.parametrize("name", [*ON_MAPS, "sp"])
def test_a_network_without_maps_is_refused_when_it_is_built(name: str) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="Sequential"):
        built(name, teacher=build_model("small_resnet", 3, in_channels=1, widths=(4, 8)), student=flat)


@pytest.mark.parametrize("name", [*sorted(set(ON_MAPS) - {"reviewkd", "ofd"}), "fsp"])
def test_a_vector_is_no_map(name: str) -> None:
    taps = {"student_taps": ("head:input",), "teacher_taps": ("head:input",)}
    with pytest.raises(ValueError, match=f"{name} compares maps .* but 'head:input' of student_taps .* name a module"):
        made(name, taps)


@pytest.mark.parametrize("name", [*ON_VECTORS, "sp"])
def test_relations_between_single_numbers_are_refused(name: str) -> None:
    taps = {"student_taps": ("head",), "teacher_taps": ("head",)}
    with pytest.raises(
        ValueError, match=f"{name} needs features of at least 2 dimensions, but 'head' gives one number"
    ):
        make(name, "regression", taps)


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_a_second_stage_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="task_weight"):
        method_config({"name": name, "task_weight": 0})


def test_the_settings_are_those_of_the_published_comparison() -> None:
    weights = {name: method_config(name).weight for name in EVERY}
    assert weights == {
        "fitnet": 100, "at": 1000, "nst": 50, "vid": 1, "ab": 1, "ft": 200, "reviewkd": 5, "ofd": 1e-3, "rkd": 1,
        "pkt": 30000, "cc": 0.02, "fsp": 50, "sp": 3000,
    }  # fmt: skip
    assert all(method_config(name).first_stage == 0.125 for name in TWO_STAGES)


def _input(distiller) -> Tensor:
    return distiller.normalize(BATCH.images.float() / 255)
