"""Methods without another teacher: what each computes, what it trains, what it remembers, how its batches are drawn."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import Batch, BatchSource
from gankd.data.sets import ImageSet
from gankd.losses import attention_transfer_loss, kd_loss, mixskd_loss, self_attention_loss, zipf_loss
from gankd.methods import METHODS, Distiller, check_method, method_config, sampling_of
from gankd.methods.alone.classmates import next_of_class
from gankd.methods.alone.mixing import draw_box, draw_mixing
from gankd.methods.alone.zipf_ls import ZipfLS, ZipfLSConfig
from gankd.methods.branches import Branch, separable, stage_taps
from gankd.methods.setup import Setup
from gankd.models.mobilenet import MobileNetV2
from gankd.models.small_resnet import ResidualBlock
from gankd.models.taps import Taps

from .common import TASKS, fixed_batch, make, network

STAGES = ["stages.0", "stages.1", "stages.2"]
CHANGES = AugmentationConfig(rotation=90, cutout=0.5)


def passed(distiller: Distiller, batch: Batch, paths: list[str] = STAGES) -> tuple[Tensor, list[Tensor]]:
    """Outputs and features on the images as they are; batch norm takes its statistics from the same batch either way."""
    return Taps(distiller.student, paths)(distiller.normalize(batch.images.float() / 255))


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    return -torch.log_softmax(logits.double(), dim=1)[torch.arange(len(labels)), labels].mean().item()


def gradients(distiller: Distiller, loss: Tensor, *modules: nn.Module) -> list[Tensor | None]:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


# --- Zipf's label smoothing -------------------------------------------------------------------------------------------


def test_zipf_lets_every_pixel_of_the_enlarged_map_vote() -> None:
    batch = fixed_batch("classification", 5)
    distiller, _ = make("zipf_ls", "classification", {"weight": 1})
    logits, (feature,) = passed(distiller, batch, ["stages"])
    pixels = F.interpolate(feature, scale_factor=2, mode="bilinear")  # 2x2 pixels vote as 4x4
    expected = 0.0
    for sample, label in enumerate(batch.labels.tolist()):
        votes = [0] * 3
        for pixel in pixels[sample].flatten(1).T:
            votes[distiller.student.head(pixel).argmax().item()] += 1
        assert sum(votes) == 16
        others = [k for k in range(3) if k != label]
        target = torch.tensor([1 / (1 + sum(v > votes[k] for v in votes)) for k in others])
        target = target / target.sum()
        predicted = torch.softmax(logits[sample, others], dim=0)
        expected += (target * (target / predicted).log()).sum().item() / 5
    terms = distiller(batch)
    assert terms["zipf_ls"].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert {"zipf_ls_voted_classes", "zipf_ls_unvoted_mass", "zipf_ls_label_votes"} <= terms.keys()
    assert terms["loss"].item() == pytest.approx(cross_entropy(logits, batch.labels) + expected, rel=1e-4)


class Flattened(nn.Sequential):
    """A network whose classifier sees every pixel by itself."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))


def setup_of(student: nn.Module, pixels: int = 8, channels: int = 1) -> Setup:
    batch = fixed_batch("classification", channels=channels, pixels=pixels)
    source = BatchSource(ImageSet(batch.images, batch.labels), batch_size=4)
    return Setup(student, None, TASKS["classification"], source, Augment(AugmentationConfig()), nn.Identity())


def test_zipf_reads_the_map_that_is_averaged_wherever_it_is_and_refuses_a_network_without() -> None:
    mobile = MobileNetV2(3, in_channels=1)
    modes = {name: module.training for name, module in mobile.named_modules()}
    term = ZipfLS(ZipfLSConfig(), setup_of(mobile, pixels=32))
    assert term.student_taps[0].startswith("conv2")  # behind the last stage
    assert {name: module.training for name, module in mobile.named_modules()} == modes
    with pytest.raises(ValueError, match="Flattened has none: set votes: logits"):
        ZipfLS(ZipfLSConfig(), setup_of(Flattened()))
    assert ZipfLS(ZipfLSConfig(votes="logits"), setup_of(Flattened())).student_taps == []


def test_zipf_counts_the_votes_of_several_stages_and_teaches_their_classifiers() -> None:
    batch = fixed_batch("classification", 5)
    distiller, _ = make("zipf_ls", "classification", {"weight": 1, "stages": 2, "auxiliary_weight": 0.5})
    (term,), (own,) = distiller.terms.values(), distiller.terms["zipf_ls"].classifiers
    logits, (shallow, deep) = passed(distiller, batch, ["stages.1", "stages"])
    votes = torch.zeros(5, 3)  # 4x4 and 2x2 pixels vote as 8x8 and 4x4
    for feature, classifier in ((shallow, own), (deep, distiller.student.head)):
        pixels = F.interpolate(feature, scale_factor=2, mode="bilinear").flatten(2)
        votes += F.one_hot(classifier(pixels.transpose(1, 2)).argmax(2), 3).sum(dim=1)
    assert votes.sum(dim=1).tolist() == [80] * 5
    ranked = zipf_loss(student_logits=logits, labels=batch.labels, scores=votes).item()
    labels = cross_entropy(own(shallow.mean(dim=(2, 3))), batch.labels)
    loss = distiller(batch)["zipf_ls"]
    assert loss.item() == pytest.approx(ranked + 0.5 * labels, rel=1e-4)
    assert all(grad is not None for grad in gradients(distiller, loss, term))
    with pytest.raises(ValueError, match="set votes: pixels"):
        ZipfLSConfig(stages=2, votes="logits")
    with pytest.raises(ValueError, match="zipf_ls needs the maps of at least 5 stages"):
        make("zipf_ls", "classification", {"stages": 5})


def test_zipf_refuses_two_classes() -> None:
    with pytest.raises(ValueError, match="of 2 classes at most 1 is wrong: it needs 3 or more"):
        make("zipf_ls", "classification", num_classes=2)


# --- regularisers -----------------------------------------------------------------------------------------------------


def test_losses_in_place_of_the_cross_entropy_equal_their_equations() -> None:
    batch = fixed_batch("classification")
    labels, rows = batch.labels, torch.arange(12)
    distiller, _ = make("label_smoothing", "classification", {"smoothing": 0.3})
    logits, (pooled,) = passed(distiller, batch, ["head:input"])
    log_p = torch.log_softmax(logits.double(), dim=1)
    target = torch.full((12, 3), 0.15).double()
    target[rows, labels] = 0.7
    assert distiller(batch)["loss"].item() == pytest.approx(-(target * log_p).sum(dim=1).mean().item(), rel=1e-5)

    own = log_p[rows, labels]
    distiller, _ = make("focal", "classification", {"gamma": 3})
    assert distiller(batch)["loss"].item() == pytest.approx((-((1 - own.exp()) ** 3) * own).mean().item(), rel=1e-5)

    distiller, _ = make("max_entropy", "classification")
    entropy_term = (log_p.exp() * log_p).sum().item() / 36
    assert distiller(batch)["loss"].item() == pytest.approx(-own.mean().item() + 0.5 * entropy_term, rel=1e-5)

    distiller, _ = make("virtual_softmax", "classification")
    head = distiller.student.head
    weight_norm = (head.weight.square().sum(dim=1) + head.bias**2).sqrt()[labels]
    virtual = weight_norm * (pooled.square().sum(dim=1) + 1).sqrt()
    assert (virtual >= logits[rows, labels]).all(), "no embedding fits its class better than the virtual one"
    expected = cross_entropy(torch.cat([logits, virtual[:, None]], dim=1), labels)
    assert distiller(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_teacher_free_distillation_weighs_labels_against_the_teacher() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("tf_kd_reg", "classification", {"alpha": 0.3, "multiplier": 5})
    logits, _ = passed(distiller, batch)
    virtual = torch.full((12, 3), 0.005).double()
    virtual[torch.arange(12), batch.labels] = 0.99
    target = torch.softmax(virtual / 20, dim=1)
    regulariser = 5 * (target * (target.log() - torch.log_softmax(logits.double(), dim=1))).mean().item()
    expected = 0.7 * cross_entropy(logits, batch.labels) + 0.3 * regulariser
    assert distiller(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)

    itself, _teacher = make("tf_kd_self", "classification", {"alpha": 0.9, "temperature": 4, "multiplier": 3})
    plain, _ = make("kd", "classification", {"alpha": 0.9, "temperature": 4})
    assert itself(batch)["loss"].item() == pytest.approx(plain(batch)["loss"].item(), rel=1e-5)  # K = 3 classes
    with pytest.raises(ValueError, match="method tf_kd_self needs a teacher"):
        check_method(method_config("tf_kd_self"), "classification", has_teacher=False)


# --- pairs of a class -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_partners_in_a_batch_are_of_one_class_each_once_and_nobody_s_own_unless_alone(labels: list[int]) -> None:
    partners = next_of_class(torch.tensor(labels)).tolist()
    assert sorted(partners) == list(range(len(labels)))
    for sample, partner in enumerate(partners):
        assert labels[sample] == labels[partner]
        assert (sample == partner) == (labels.count(labels[sample]) == 1)


@pytest.mark.parametrize(("learners", "partners"), [("first", [3, 4, 5]), ("both", [3, 4, 5, 0, 1, 2])])
def test_cs_kd_follows_the_partner_and_pulls_nothing_where_there_is_none(learners: str, partners: list[int]) -> None:
    batch = fixed_batch("classification", 6)  # labels 0 1 2 0 1 2
    distiller, _ = make("cs_kd", "classification", {"weight": 2, "learners": learners})
    logits, _ = passed(distiller, batch)
    learning = logits[: len(partners)]
    divergence = kd_loss(student_logits=learning, teacher_logits=logits[partners], temperature=4).item()
    terms = distiller(batch)
    assert terms["cs_kd"].item() == pytest.approx(divergence, rel=1e-4)
    labels = cross_entropy(learning, batch.labels[: len(partners)])
    assert terms["loss"].item() == pytest.approx(labels + 2 * divergence, rel=1e-4)
    for size in (1, 3):
        alone = dataclasses.replace(fixed_batch("classification", size), labels=torch.arange(size))
        distiller, _ = make("cs_kd", "classification", {"learners": learners})
        assert distiller(alone)["cs_kd"].abs() < 1e-6


def pair_source(labels: list[int], num_synthetic: int = 0, sampling: str = "class_pairs", **arguments) -> BatchSource:
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8)
    first = len(labels) - num_synthetic
    ids = torch.tensor(labels)
    synthetic = ImageSet(images[first:], ids[first:], name="synthetic", is_synthetic=True) if num_synthetic else None
    return BatchSource(ImageSet(images[:first], ids[:first], name="real"), synthetic, sampling=sampling, **arguments)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=20), st.integers(2, 11), st.integers(0, 50))
def test_class_pairs_give_every_sample_another_one_of_its_class(labels: list[int], batch_size: int, step: int) -> None:
    if max(map(labels.count, labels)) < 2:
        labels = [*labels, labels[0]]
    batch = pair_source(labels, batch_size=batch_size).batch(step)
    assert len(batch.images) == batch_size
    assert torch.equal(batch.labels, torch.tensor(labels)[batch.indices])
    half = batch_size // 2
    partners = batch.indices[half : 2 * half]
    for sample, partner in zip(batch.indices[:half].tolist(), partners.tolist(), strict=True):
        assert labels[sample] == labels[partner]
        assert (sample == partner) == (labels.count(labels[sample]) == 1)
    for label in batch.labels.tolist():
        assert batch.labels.tolist().count(label) >= 2
    again = pair_source(labels, batch_size=batch_size).batch(step)
    assert torch.equal(again.indices, batch.indices)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=20), st.integers(2, 19), st.integers(0, 50))
def test_class_fours_are_pairs_of_pairs(labels: list[int], batch_size: int, step: int) -> None:
    if max(map(labels.count, labels)) < 2:
        labels = [*labels, labels[0]]
    source = pair_source(labels, batch_size=batch_size, sampling="class_fours")
    batch, half, quarter = source.batch(step), batch_size // 2, max(1, batch_size // 4)
    assert len(batch.images) == batch_size and len(source.passes(step)) == batch_size
    rows = torch.arange(batch_size)
    for row in range(half):
        assert batch.labels[row] == batch.labels[row % quarter] == batch.labels[row + half]
    counts = [batch.labels.tolist().count(label) for label in batch.labels[rows % quarter].tolist()]
    assert min(counts) >= min(4, batch_size)


def test_fours_stay_within_a_process() -> None:
    arguments = {"num_synthetic": 8, "batch_size": 16, "synthetic_fraction": 0.5, "seed": 3, "sampling": "class_fours"}
    whole = pair_source([0, 1, 2, 3] * 8, **arguments).batch(5)
    assert whole.is_synthetic.sum() == 8
    shares = [pair_source([0, 1, 2, 3] * 8, **arguments, rank=rank, world_size=2).batch(5) for rank in range(2)]
    for share in shares:
        assert torch.equal(share.labels.view(4, 2), share.labels[:2].expand(4, 2))
    assert sorted(torch.cat([share.indices for share in shares]).tolist()) == sorted(whole.indices.tolist())
    with pytest.raises(ValueError, match="does not split into fours of one class over 2 .* a multiple of 8"):
        pair_source([0, 0], batch_size=12, world_size=2, sampling="class_fours")


def test_partners_are_drawn_uniformly_and_the_first_of_a_pair_goes_through_its_passes() -> None:
    source = pair_source([0] * 5 + [1], batch_size=12)
    batches = [source.batch(step).indices for step in range(200)]
    assert all(sorted(batch[:6].tolist()) == list(range(6)) for batch in batches)
    pairs = torch.stack([torch.cat([batch[:6], batch[6:]]).view(2, 6) for batch in batches])  # [200, 2, 6]
    counts = torch.zeros(6, 6)
    for first, second in pairs.transpose(1, 2).reshape(-1, 2).tolist():
        counts[first, second] += 1
    assert (counts[:5, :5].diagonal() == 0).all() and counts[5, 5] == 200
    off_diagonal = counts[:5, :5][~torch.eye(5, dtype=torch.bool)]
    assert off_diagonal.min() > 25 and off_diagonal.max() < 80  # 50 expected of 200


def test_pairs_keep_the_share_of_synthetic_samples_and_stay_within_a_process() -> None:
    labels = [0, 1, 2] * 8
    arguments = {"num_synthetic": 12, "batch_size": 16, "synthetic_fraction": 0.75, "seed": 3}
    whole = pair_source(labels, **arguments).batch(5)
    assert whole.is_synthetic.sum() == 12
    assert torch.equal(whole.is_synthetic[:8], whole.is_synthetic[8:])
    shares = [pair_source(labels, **arguments, rank=rank, world_size=2).batch(5) for rank in range(2)]
    for share in shares:
        assert torch.equal(share.labels[:4], share.labels[4:])
    assert sorted(torch.cat([share.indices for share in shares]).tolist()) == sorted(whole.indices.tolist())


def test_f22_pairs_of_distinct_classes_leave_one_positive_as_mcls_authors_draw_them() -> None:
    """Shuffle the classes, take half a batch of them, two images of each; class_pairs leave 2.25 positives at this size."""
    labels = list(range(20)) * 6 + [20] * 60  # and one class that is as frequent as ten others
    source = pair_source(labels, batch_size=20, seed=1, sampling="distinct_pairs")
    seen = torch.zeros(21)
    for step in range(300):
        batch = source.batch(step)
        assert (batch.labels[:, None] == batch.labels).sum(dim=1).eq(2).all()  # itself and its one positive
        assert (batch.indices[:10] != batch.indices[10:]).all()
        assert torch.equal(batch.labels, torch.tensor(labels)[batch.indices])
        seen[batch.labels] += 1
    assert seen.min() > 0.7 * seen.mean() and seen.max() < 1.3 * seen.mean()  # every class as often
    assert torch.equal(
        pair_source(labels, batch_size=20, seed=1, sampling="distinct_pairs").batch(299).indices, batch.indices
    )


@pytest.mark.parametrize("world_size", [1, 2])
def test_pairs_of_distinct_classes_keep_the_share_of_synthetic_samples_and_need_not_be_all_distinct(world_size) -> None:
    labels = [0, 1, 2, 3] * 4 + [1, 2, 3, 4] * 4  # 16 real ones, and synthetic ones without class 0
    form = {"num_synthetic": 16, "batch_size": 12, "synthetic_fraction": 0.5, "seed": 3, "sampling": "distinct_pairs"}
    for step in range(20):
        parts = [
            pair_source(labels, **form, world_size=world_size, rank=rank).batch(step) for rank in range(world_size)
        ]
        found, synthetic = (torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "is_synthetic"))
        counts = torch.bincount(found, minlength=5)
        assert counts.sum() == 12 and counts.max() == 4 and (counts > 0).sum() >= 4 and synthetic.sum() == 6
        for part in parts:
            half = len(part.labels) // 2
            assert torch.equal(part.labels[:half], part.labels[half:])
            assert torch.equal(part.is_synthetic[:half], part.is_synthetic[half:])


def test_a_resident_set_and_one_that_is_read_give_the_same_pairs() -> None:
    resident, lazy = (pair_source([0, 1] * 6, batch_size=6, memory_budget=budget) for budget in (1 << 20, 0))
    lazy.workers = 0
    for one, other in zip(resident.stream(0, 5), lazy.stream(0, 5), strict=True):
        assert torch.equal(one.indices, other.indices) and torch.equal(one.images, other.images)


def test_pairs_say_what_they_need() -> None:
    with pytest.raises(ValueError, match="batch_size 1 does not split into pairs of one class over 1 processes"):
        pair_source([0, 0], batch_size=1)
    with pytest.raises(ValueError, match="make it a multiple of 4"):
        pair_source([0, 0], batch_size=6, world_size=2)
    with pytest.raises(ValueError, match="every class has only one; add samples"):
        pair_source([0, 1, 2], batch_size=2)
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="need class ids, and these labels are scalars"):
        BatchSource(ImageSet(images, torch.rand(4)), batch_size=2, sampling="class_pairs")


def test_methods_ask_for_pairs_alone_and_among_others_and_not_without_weight_or_classes() -> None:
    combined = {"name": "combined", "terms": [{"name": "kd"}, {"name": "cs_kd"}]}
    assert sampling_of(method_config(combined), "classification") == "class_pairs"
    assert sampling_of(method_config("bake"), "classification") == "class_fours"
    assert sampling_of(method_config({"name": "bake", "images_per_class": 2}), "classification") == "class_pairs"
    combined["terms"].append({"name": "bake"})
    assert sampling_of(method_config(combined), "classification") == "class_fours"
    assert sampling_of(method_config("bake"), "regression") == "uniform"
    assert sampling_of(method_config({"name": "cs_kd", "weight": 0}), "classification") == "uniform"
    assert sampling_of(method_config("mixskd"), "classification") == "uniform"


# --- PS-KD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_ps_kd_blends_the_label_with_what_was_said_of_the_sample_before(kind: str) -> None:
    whole = fixed_batch(kind)
    picked = torch.tensor([3, 10, 7])  # real, synthetic, synthetic
    batch = Batch(whole.images[picked], whole.labels[picked], picked, whole.is_synthetic[picked])
    distiller, _ = make("ps_kd", kind, {"alpha": 0.6}, data=whole)
    (term,) = distiller.terms.values()
    before = term.last_predictions.rows.clone()

    distiller.start_step(0, 8, 2)  # the first of 4 epochs: nothing was said before but the label
    outputs, _ = passed(distiller, batch)
    expected = TASKS[kind].loss(outputs, batch.labels).item()
    assert distiller(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)
    untouched = [row for row in range(12) if row not in picked.tolist()]
    assert torch.equal(term.last_predictions.rows[untouched], before[untouched])
    said = outputs.softmax(dim=1) if kind == "classification" else outputs.flatten()
    torch.testing.assert_close(term.last_predictions.rows[picked].float(), said, atol=1e-3, rtol=1e-3)

    distiller.start_step(5, 8, 2)  # epoch 2 of 4: alpha * 3 / 4
    share, said = 0.45, term.last_predictions.rows[picked].double()
    with torch.no_grad():
        distiller.student.head.bias += torch.tensor([0.5, 0.0, -1.0])[: len(distiller.student.head.bias)]
    outputs, _ = passed(distiller, batch)
    if kind == "classification":
        target = (1 - share) * F.one_hot(batch.labels, 3) + share * said
        expected = -(target * torch.log_softmax(outputs.double(), dim=1)).sum(dim=1).mean()
    else:
        target = (1 - share) * (batch.labels.double() - 2) / 1.5 + share * said
        expected = (outputs.double().flatten() - target).square().mean()
    assert distiller(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_ps_kd_keeps_its_history_in_the_checkpoint_and_does_not_write_it_in_evaluation() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("ps_kd", "classification")
    fresh = distiller.terms["ps_kd"].last_predictions.rows.clone()
    assert torch.equal(fresh.float(), F.one_hot(batch.labels, 3).float())
    distiller.eval()
    distiller(batch)
    assert torch.equal(distiller.terms["ps_kd"].last_predictions.rows, fresh)
    distiller.train()
    distiller(batch)
    restored, _ = make("ps_kd", "classification")
    restored.load_state_dict(distiller.state_dict())
    assert torch.equal(restored.terms["ps_kd"].last_predictions.rows, distiller.terms["ps_kd"].last_predictions.rows)
    assert not torch.equal(restored.terms["ps_kd"].last_predictions.rows, fresh)


def test_ps_kd_trusts_its_past_more_every_epoch_up_to_alpha_in_the_last() -> None:
    distiller, _ = make("ps_kd", "classification", {"alpha": 0.8})
    shares = []
    for step in range(10):
        distiller.start_step(step, 10, 3)  # 4 epochs, the last of one step
        shares.append(distiller.terms["ps_kd"].share)
    assert shares == pytest.approx([0.2] * 3 + [0.4] * 3 + [0.6] * 3 + [0.8])


# --- BAKE, DDGSD ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_bake_spreads_predictions_along_similarities_until_nothing_changes(kind: str) -> None:
    batch = fixed_batch(kind, 7)
    distiller, _ = make("bake", kind, {"omega": 0.7, "temperature": 2})
    outputs, (pooled,) = passed(distiller, batch, ["head:input"])
    directions = F.normalize(pooled.double(), dim=1)
    affinity = (directions @ directions.T - 1e9 * torch.eye(7)).softmax(dim=1)
    predictions = (outputs.double() / 2).softmax(dim=1) if kind == "classification" else outputs.double()
    targets = predictions
    for _ in range(200):
        targets = 0.7 * affinity @ targets + 0.3 * predictions
    if kind == "classification":
        expected = 4 * (targets * (targets / predictions).log()).sum(dim=1).mean()
    else:
        expected = (predictions - targets).square().mean()
    assert distiller(batch)["bake"].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("mmd", ["vector", "scalar"])
def test_ddgsd_compares_two_views_that_went_through_one_pass(kind: str, mmd: str) -> None:
    batch = fixed_batch(kind)
    distiller, _ = make("ddgsd", kind, {"mmd_weight": 3, "mmd": mmd}, augmentation=CHANGES)
    seen = []
    distiller.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = distiller(batch)
    (views,) = seen
    assert len(views) == 24 and not torch.equal(views[:12], views[12:])
    outputs, (pooled,) = Taps(distiller.student, ["head:input"])(views)
    first, second = outputs.chunk(2)
    gap = pooled[:12].mean(dim=0) - pooled[12:].mean(dim=0)
    distance = gap.square().sum() if mmd == "vector" else gap.mean().square()
    if kind == "classification":
        mutual = kd_loss(student_logits=first, teacher_logits=second, temperature=4)
        mutual = mutual + kd_loss(student_logits=second, teacher_logits=first, temperature=4)
    else:
        mutual = 2 * (first - second).square().mean()
    task = TASKS[kind].loss(outputs, batch.labels.repeat(2)) / 2
    assert terms["task"].item() == pytest.approx(task.item(), rel=1e-4)
    assert terms["ddgsd"].item() == pytest.approx((mutual + 3 * distance).item(), rel=1e-3, abs=1e-6)
    assert terms["loss"].item() == pytest.approx((task + mutual + 3 * distance).item(), rel=1e-4)


# --- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [ResidualBlock, separable])
def test_a_branch_ends_in_a_map_like_the_deepest_one_whatever_the_sizes(block) -> None:
    shapes = [(4, 9, 7), (6, 4, 3), (10, 2, 1)]  # sizes halved downwards, which a padded convolution does not do
    outputs, feature = Branch(shapes, 5, block)(torch.rand(3, 4, 9, 7))
    assert outputs.shape == (3, 5) and feature.shape == (3, 10, 2, 1)


def test_stages_are_found_in_any_network_and_a_short_one_lends_its_stem() -> None:
    assert stage_taps(setup_of(network("classification", 0)), "dks", None, at_least=2)[0] == STAGES
    short = network("classification", 0, widths=(4,))
    assert stage_taps(setup_of(short), "dks", None, at_least=2)[0] == ["stem", "stages.0"]
    taps, shapes = stage_taps(setup_of(Flattened()), "dks", None, at_least=2)
    assert [shape[1:] for shape in shapes] == [(8, 8), (4, 4)] and len(taps) == 2
    with pytest.raises(
        ValueError, match="dks needs the maps of at least 2 stages, .* it has 1; name modules in student_"
    ):
        stage_taps(setup_of(short), "dks", ["stem"], at_least=2)
    with pytest.raises(ValueError, match=r"'head:input' gives features of shape \[4\]"):
        stage_taps(setup_of(short), "dks", ["stem", "head:input"], at_least=2)


@pytest.mark.parametrize("kind", TASKS)
def test_byot_s_branches_learn_from_labels_and_the_deepest_head_which_they_do_not_move(kind: str) -> None:
    batch = fixed_batch(kind)
    distiller, _ = make("byot", kind, {"feature_weight": 0.5})
    (term,) = distiller.terms.values()
    outputs, features = passed(distiller, batch)
    expected = 0.0
    for branch, feature in zip(term.branches, features[:-1], strict=True):
        shallow, map_ = branch(feature)
        expected += TASKS[kind].loss(shallow, batch.labels).item() + 0.5 * (map_ - features[-1]).square().mean().item()
        if kind == "classification":
            expected += kd_loss(student_logits=shallow, teacher_logits=outputs, temperature=4).item()
        else:
            expected += (shallow - outputs).square().mean().item()
    terms = distiller(batch)
    assert terms["byot"].item() == pytest.approx(expected, rel=1e-4)
    assert all(grad is None for grad in gradients(distiller, terms["byot"], distiller.student.head))
    terms = distiller(batch)
    assert all(grad is not None for grad in gradients(distiller, terms["byot"], term, distiller.student.stages[1]))


def test_dks_heads_teach_each_other_in_both_directions() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("dks", "classification")
    (term,) = distiller.terms.values()
    outputs, features = passed(distiller, batch)
    heads = [outputs, *(branch(feature)[0] for branch, feature in zip(term.branches, features[:-1], strict=True))]
    expected = sum(cross_entropy(head, batch.labels) for head in heads[1:])
    for one in range(3):
        for other in {0, 1, 2} - {one}:
            expected += kd_loss(student_logits=heads[one], teacher_logits=heads[other], temperature=4).item()
    terms = distiller(batch)
    assert terms["dks"].item() == pytest.approx(expected, rel=1e-4)
    assert all(grad is not None for grad in gradients(distiller, terms["dks"], distiller.student.head, term))


@pytest.mark.parametrize("kind", TASKS)
def test_sad_makes_every_stage_look_where_the_next_one_looks_and_not_the_other_way(kind: str) -> None:
    batch = fixed_batch(kind)
    distiller, _ = make("sad", kind)
    _, (first, second, third) = passed(distiller, batch)
    expected = self_attention_loss(student_feature=first, teacher_feature=second)
    expected = expected + self_attention_loss(student_feature=second, teacher_feature=third)
    terms = distiller(batch)
    assert terms["sad"].item() == pytest.approx(expected.item(), rel=1e-4)
    last, head = distiller.student.stages[2], distiller.student.head
    assert all(grad is None for grad in gradients(distiller, terms["sad"], last, head))


@pytest.mark.parametrize("kind", TASKS)
def test_frskd_s_self_teacher_learns_from_the_labels_alone_and_teaches_the_rest(kind: str) -> None:
    batch = fixed_batch(kind)
    distiller, _ = make("frskd", kind)
    (term,) = distiller.terms.values()
    outputs, features = passed(distiller, batch)
    teacher, refined = term.self_teacher(features)
    assert [tuple(map_.shape[1:]) for map_ in refined] == [(8, 8, 8), (16, 4, 4), (16, 2, 2)]
    labels = TASKS[kind].loss(teacher, batch.labels)
    if kind == "classification":
        imitation = kd_loss(student_logits=outputs, teacher_logits=teacher, temperature=4)
    else:
        imitation = (outputs - teacher).square().mean()
    attention = attention_transfer_loss(student_features=features, teacher_features=refined)
    terms = distiller(batch)
    assert terms["frskd"].item() == pytest.approx((labels + 2 * imitation + 100 * attention).item(), rel=1e-4)
    expected = gradients(distiller, labels, term.self_teacher)
    for mine, theirs in zip(gradients(distiller, terms["frskd"], term.self_teacher), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


# --- mixing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_mixup_blends_images_and_labels_in_one_proportion(kind: str) -> None:
    batch = fixed_batch(kind)
    distiller, _ = make("mixup", kind, {"alpha": 1})
    distiller.normalize = nn.Identity()
    seen = []
    distiller.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    loss = distiller(batch)["loss"].item()
    view = batch.images.float() / 255
    torch.manual_seed(0)
    partners, share = draw_mixing(view, 1)
    assert 0 < share < 1 and sorted(partners.tolist()) == list(range(12))
    for mixed, own, partner in zip(seen[0], view, partners, strict=True):
        torch.testing.assert_close(mixed, share * own + (1 - share) * view[partner])
    outputs = distiller.student(seen[0])
    own, theirs = batch.labels, batch.labels[partners]
    if kind == "classification":
        expected = share * cross_entropy(outputs, own) + (1 - share) * cross_entropy(outputs, theirs)
    else:
        expected = TASKS[kind].loss(outputs, share * own + (1 - share) * theirs).item()
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", TASKS)
def test_manifold_mixup_blends_what_goes_into_a_stage(kind: str) -> None:
    batch = fixed_batch(kind)
    distiller, _ = make("mixup", kind, {"blended": "stages", "alpha": 2})
    student, image = distiller.student, distiller.normalize(batch.images.float() / 255)
    found = set()
    for seed in range(12):
        torch.manual_seed(seed)
        loss = distiller(batch)["loss"].item()
        torch.manual_seed(seed)
        partners, share = draw_mixing(image, 2)
        feature, losses = student.stem(image), []
        for place in range(3):
            blend = share * feature + (1 - share) * feature[partners]
            for stage in student.stages[place:]:
                blend = stage(blend)
            outputs = student.head(blend.mean(dim=(2, 3)))
            losses.append(distiller.task.mixed_loss(outputs, batch.labels, partners, share).item())
            feature = student.stages[place](feature)
        found.add(min(range(3), key=lambda place: abs(losses[place] - loss)))
        assert loss == pytest.approx(min(losses, key=lambda value: abs(value - loss)), rel=1e-4)
    assert found == {0, 1, 2}


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_without_alpha_or_in_evaluation_nothing_is_mixed(name: str) -> None:
    batch = fixed_batch("classification")
    plain, _ = make("supervised", "classification")
    unmixed, _ = make(name, "classification", {"alpha": 0})
    assert torch.equal(unmixed(batch)["loss"], plain(batch)["loss"])
    mixed, _ = make(name, "classification")
    assert torch.equal(mixed.eval()(batch)["loss"], make("supervised", "classification")[0].eval()(batch)["loss"])


@given(st.floats(0, 1), st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_a_box_lies_in_the_image_and_is_no_larger_than_its_share(mixing: float, height: int, width: int, seed: int):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        row0, row1, column0, column1 = draw_box(mixing, height, width)
    assert 0 <= row0 <= row1 <= height and 0 <= column0 <= column1 <= width
    assert (row1 - row0) * (column1 - column0) <= (1 - mixing) * height * width + 1e-6


# --- MixSKD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_mixskd_sums_its_terms_and_its_released_form_leaves_out_the_labels_of_mixtures(kind: str) -> None:
    batch = fixed_batch(kind)
    weights = {"mixed_weight": 0.5, "kd_weight": 3, "feature_weight": 2, "adversarial_weight": 0.25}
    for released in (False, True):
        distiller, _ = make("mixskd", kind, {**weights, "as_released": released})
        terms = distiller(batch)
        expected = terms["clean"] + 3 * terms["divergence"] + 2 * terms["features"] + 0.25 * terms["adversarial"]
        if not released:
            expected = expected + 0.5 * terms["mixed"]
        assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
        frozen = [distiller.fusion, distiller.self_teacher_head, distiller.discriminators]
        trained = [parameter.requires_grad for module in frozen for parameter in module.parameters()]
        assert all(trained) != released and any(trained) != released
        terms["loss"].backward()
        assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad), "processes wait for all"


@pytest.mark.parametrize("kind", TASKS)
def test_mixskd_s_discriminators_descend_what_the_network_climbs(kind: str) -> None:
    batch = fixed_batch(kind)
    gradient = {}
    for released in (False, True):
        torch.manual_seed(0)
        distiller, _ = make("mixskd", kind, {"as_released": released})
        torch.manual_seed(1)
        loss = distiller(batch)["adversarial"]
        gradient[released] = gradients(distiller, loss, distiller.student.stem)
        if not released:
            before = loss.item()
            moved = torch.autograd.grad(distiller(batch)["adversarial"], list(distiller.discriminators.parameters()))
            with torch.no_grad():
                for parameter, slope in zip(distiller.discriminators.parameters(), moved, strict=True):
                    parameter -= 0.1 * slope
            torch.manual_seed(1)
            assert distiller(batch)["adversarial"].item() < before
    for corrected, helping in zip(gradient[False], gradient[True], strict=True):
        torch.testing.assert_close(corrected, -helping)


def test_mixskd_s_self_teacher_learns_from_the_labels_of_mixtures_alone() -> None:
    distiller, _ = make("mixskd", "classification")
    terms = distiller(fixed_batch("classification"))
    teacher = (distiller.fusion, distiller.self_teacher_head)
    for name in ("clean", "divergence", "features", "adversarial"):
        grads = torch.autograd.grad(
            terms[name], [p for m in teacher for p in m.parameters()], allow_unused=True, retain_graph=True
        )
        assert all(grad is None for grad in grads), name
    assert all(grad is not None for grad in gradients(distiller, terms["mixed"], *teacher))


@pytest.mark.parametrize("kind", TASKS)
def test_mixskd_finds_nothing_to_say_about_a_mixture_of_one_image(kind: str) -> None:
    """With alpha 0 the mixtures are the images: maps agree, and so do interpolated and mixed outputs."""
    terms = make("mixskd", kind, {"alpha": 0})[0](fixed_batch(kind))
    assert terms["features"].item() == pytest.approx(0, abs=1e-9)
    assert terms["adversarial"].item() >= 3 * math.log(2) - 1e-4, "nobody tells equal maps apart"


def test_mixskd_s_terms_on_scalars_are_squares() -> None:
    batch = fixed_batch("regression")
    distiller, _ = make("mixskd", "regression", student_widths=(4, 8))
    permutation, mixing = torch.arange(12).roll(1), 0.3
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(24, 1, generator=generator) for _ in range(2)]
    maps = [torch.randn(24, 8, 4, 4, generator=generator) for _ in range(2)]
    teachers = tuple(torch.randn(12, 1, generator=generator) for _ in range(2))
    _, *terms = mixskd_loss(
        logits=outputs,
        features=maps,
        interpolated_teacher_logits=teachers[0],
        mixup_teacher_logits=teachers[1],
        labels=batch.labels,
        permutation=permutation,
        mixing=mixing,
        task=distiller.task,
    )
    terms = dict(zip(("clean", "mixed", "kd", "features"), terms, strict=True))
    labels = ((batch.labels - 2) / 1.5)[:, None]

    def blend(values: Tensor) -> Tensor:
        return torch.stack([0.3 * values[n] + 0.7 * values[(n - 1) % 12] for n in range(12)])

    def square(one: Tensor, other: Tensor) -> float:
        return (one - other).square().mean().item()

    branch, own = outputs
    assert terms["clean"].item() == pytest.approx(square(branch[:12], labels) + square(own[:12], labels), rel=1e-5)
    on_mixtures = [branch[12:], own[12:], *teachers]
    assert terms["mixed"].item() == pytest.approx(sum(square(o, blend(labels)) for o in on_mixtures), rel=1e-5)
    kd = 2 * square(blend(branch[:12]), branch[12:])
    kd += square(blend(own[:12]), teachers[1]) + square(own[12:], teachers[0])
    assert terms["kd"].item() == pytest.approx(kd, rel=1e-5)
    features = sum(square(blend(map_[:12]), map_[12:]) for map_ in maps)
    assert terms["features"].item() == pytest.approx(features, rel=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("zipf_ls", "zipf_ls ranks classes; this task has a scalar target"),
        ("label_smoothing", "this task has a scalar target"),
        ("tf_kd_reg", "Use tf_kd_self"),
        ("cs_kd", "cs_kd pairs images of a class"),
        ("focal", "Use supervised"),
        ("max_entropy", "Use supervised"),
        ("virtual_softmax", "Use supervised"),
        ("dks", "Use byot"),
        ("cutmix", "area, which is no measure of a scalar target. Use mixup"),
    ],
)
def test_what_needs_classes_refuses_a_scalar_target_and_says_what_to_do(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"method {name} is not defined for regression; .*{sentence}"):
        check_method(method_config(name), "regression", has_teacher=True)


@pytest.mark.parametrize("name", ["ps_kd", "byot", "ddgsd", "bake", "frskd", "mixskd"])
def test_what_follows_predictions_needs_scalar_outputs(name: str) -> None:
    with pytest.raises(ValueError, match="not defined for task.head: bins; it takes scalar"):
        METHODS[name].check("regression", False, "bins")


# --- F19, F22: what deviated from papers and codes ----------------------------------------------------------------------


def test_f19_zipf_refuses_a_map_of_one_pixel_which_would_be_label_smoothing() -> None:
    with pytest.raises(ValueError, match="has one, which makes the term label smoothing: set votes: logits"):
        make("zipf_ls", "classification", pixels=4, student_widths=(4, 8, 8))
    make("zipf_ls", "classification", {"votes": "logits"}, pixels=4, student_widths=(4, 8, 8))


def test_f22_the_weight_of_zipf_s_auxiliary_classifiers_does_not_depend_on_its_own() -> None:
    batch, share = fixed_batch("classification", 5), []
    for auxiliary in (1.0, 2.0):
        distiller, _ = make("zipf_ls", "classification", {"weight": 0.1, "stages": 2, "auxiliary_weight": auxiliary})
        share.append(distiller(batch)["loss"])
    own = distiller.terms["zipf_ls"].classifiers[0]
    _, (shallow,) = passed(distiller, batch, ["stages.1"])
    expected = cross_entropy(own(shallow.mean(dim=(2, 3))), batch.labels)
    assert (share[1] - share[0]).item() == pytest.approx(expected, rel=1e-4)


def test_f22_the_branches_of_mixskd_are_copies_of_the_remaining_stages() -> None:
    distiller, _ = make("mixskd", "classification", student_widths=(4, 8, 8))
    student = dict(distiller.student.named_parameters())
    for branch in distiller.branches:
        own = dict(branch.network.named_parameters())
        assert own and all(student[name].shape == value.shape for name, value in own.items())
    first, second = (sum(value.numel() for value in branch.parameters()) for branch in distiller.branches)
    assert first > second
