"""Contrastive representation distillation: the draw, banks, queues, normalisers; `main` is what two processes run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

from gankd.data.loader import Batch, BatchSource
from gankd.losses import crd_loss
from gankd.methods import Distiller, method_config
from gankd.methods.memory_bank import PositiveSets
from gankd.methods.teacher.crd import CRD
from gankd.training import RunContext, TrainingConfig, fit
from tests.commands import run_two
from tests.methods.common import fixed_batch, image_sets, make


def draw(
    labels: Tensor, anchors: Tensor, num_negatives: int, *, kappa: float | None = None, mode: str = "exact"
) -> Tensor:
    return PositiveSets(labels, kappa).draw(anchors, num_negatives=num_negatives, mode=mode)


def term_of(distiller: Distiller) -> CRD:
    return distiller.terms["crd"]


def embeddings(distiller: Distiller, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of student and teacher, by hand from the last linear layers' inputs."""
    term, view, caught = term_of(distiller), batch.images.float() / 255, []
    for model, normalize in (
        (distiller.student, distiller.normalize),
        (distiller.teacher.module, distiller.teacher.normalize),
    ):
        hook = model.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        model(normalize(view))
        hook.remove()
    heads = (term.student_head, term.teacher_head)
    linear = [feature @ head.weight.T + head.bias for feature, head in zip(caught, heads, strict=True)]
    return tuple(feature / feature.norm(dim=1, keepdim=True) for feature in linear)


# --- the draw ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=30).filter(lambda labels: len(set(labels)) > 1),
    num_negatives=st.integers(1, 40),
    mode=st.sampled_from(["exact", "relax"]),
    kappa=st.sampled_from([None, 0.0, 1.0]),
    seed=st.integers(0, 100),
)
def test_a_draw_keeps_the_promises_of_contrast_indices(labels, num_negatives, mode, kappa, seed) -> None:
    if kappa:
        labels = [3 * label for label in labels]
    torch.manual_seed(seed)
    anchors = torch.arange(len(labels)).flip(0)
    ids = draw(torch.tensor(labels), anchors, num_negatives, kappa=kappa, mode=mode)
    assert ids.shape == (len(labels), num_negatives + 1) and ids.dtype == torch.int64
    for anchor, (positive, *negatives) in zip(anchors.tolist(), ids.tolist(), strict=True):
        pool = [place for place, label in enumerate(labels) if abs(label - labels[anchor]) > (kappa or 0)]
        assert positive == anchor if mode == "exact" else positive not in pool
        counts = [negatives.count(place) for place in pool]
        assert sum(counts) == num_negatives and max(counts) - min(counts) <= 1


def test_every_set_of_negatives_is_equally_likely() -> None:
    """Not only every negative: each of the ten pairs of a pool of five."""
    labels = torch.tensor([0, 1, 2, 0, 1, 1, 2])
    torch.manual_seed(0)
    rows = [draw(labels, torch.tensor([0]), 2)[0, 1:].sort().values.tolist() for _ in range(3000)]
    pairs = {pair: rows.count(list(pair)) for pair in {tuple(row) for row in rows}}
    assert len(pairs) == 10
    assert all(abs(count - 300) < 5 * math.sqrt(300) for count in pairs.values())


@pytest.mark.parametrize("anchors", [(0, 3), (0, 1)], ids=["of one class", "of two classes"])
def test_two_rows_of_a_batch_are_uncorrelated(anchors: tuple[int, int]) -> None:
    """P(j in row 1 and l in row 2) is the product of both chances for every j and l, equal ones among them."""
    labels = torch.tensor([0, 1, 2, 0, 1, 1, 2])
    torch.manual_seed(0)
    together, draws = torch.zeros(7, 7), 3000
    for _ in range(draws):
        first, second = draw(labels, torch.tensor(anchors), 2)[:, 1:]
        together[first[:, None], second] += 1
    chances = [(labels != labels[anchor]).float() * 2 / (labels != labels[anchor]).sum() for anchor in anchors]
    expected = draws * torch.outer(*chances)
    assert ((together - expected).abs() < 5 * expected.sqrt() + 1e-9).all()


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_first_step_equals_the_equation_and_then_moves_the_banks(kind: str) -> None:
    batch = fixed_batch(kind)  # three labels four times each: all eight unlike samples are the negatives
    distiller, _ = make("crd", kind)
    term = term_of(distiller)
    student, teacher = embeddings(distiller, batch)
    banks = [term.student_bank.rows.clone(), term.teacher_bank.rows.clone()]
    unlike = torch.stack([(batch.labels != label).nonzero().flatten() for label in batch.labels])
    contrast = torch.cat([batch.indices[:, None], unlike], dim=1)
    loss, *normalizers = crd_loss(
        student_embedding=student,
        teacher_embedding=teacher,
        student_bank=banks[0],
        teacher_bank=banks[1],
        contrast_indices=contrast,
    )
    assert distiller(batch)["crd"].item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(term.normalizers, torch.stack(normalizers))
    for bank, before, embedding in zip((term.student_bank, term.teacher_bank), banks, (student, teacher), strict=True):
        moved = (before + embedding) / 2
        torch.testing.assert_close(bank.rows, moved / moved.norm(dim=1, keepdim=True))


def test_the_normalisers_are_those_of_the_first_batch_and_evaluation_changes_nothing() -> None:
    distiller, _ = make("crd", "classification")
    distiller.eval()(fixed_batch("classification"))
    assert term_of(distiller).normalizers.tolist() == [0, 0]
    distiller.train()(fixed_batch("classification"))
    first = {key: value.clone() for key, value in term_of(distiller).state_dict().items()}
    distiller(fixed_batch("classification", 5))
    assert torch.equal(term_of(distiller).normalizers, first["normalizers"])
    assert not torch.equal(term_of(distiller).student_bank.rows, first["student_bank.rows"])


def test_real_and_synthetic_samples_have_rows_and_gradients_reach_both_heads() -> None:
    distiller, _ = make("crd", "classification", {"dimension": 16})
    assert term_of(distiller).student_bank.rows.shape == term_of(distiller).teacher_bank.rows.shape == (12, 16)
    distiller(fixed_batch("classification"))["loss"].backward()
    for head in (term_of(distiller).student_head, term_of(distiller).teacher_head):
        assert head.weight.grad.abs().sum() > 0


def test_banks_and_normalisers_are_in_the_checkpoint_and_labels_are_not() -> None:
    distiller, _ = make("crd", "classification")
    assert {key for key in distiller.state_dict() if key.startswith("terms.crd.")} == {
        f"terms.crd.{name}"
        for name in (
            "normalizers",
            "student_bank.rows",
            "teacher_bank.rows",
            "student_head.weight",
            "student_head.bias",
            "teacher_head.weight",
            "teacher_head.bias",
        )
    }


# --- data without ids -------------------------------------------------------------------------------------------------


def test_a_queue_holds_the_latest_samples_first() -> None:
    distiller, _ = make("crd", "classification", {"memory": "queue", "queue_size": 8})
    term, first, second = term_of(distiller), fixed_batch("classification", 5), fixed_batch("classification", 6)
    assert term.queue_labels.rows.tolist() == [-1] * 8, "nobody's"
    student, _ = embeddings(distiller, first)
    distiller(first)
    torch.testing.assert_close(term.student_bank.rows[:5], student.detach())
    distiller(second)
    assert term.queue_labels.rows.tolist() == [*second.labels.tolist(), *first.labels.tolist()[:2]]


@pytest.mark.parametrize("memory", ["queue", "batch"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_without_a_bank_ids_mean_nothing(memory: str, kind: str) -> None:
    batch, losses = fixed_batch(kind), []
    for indices in (batch.indices, batch.indices + 10**9):
        distiller, _ = make("crd", kind, {"memory": memory})
        torch.manual_seed(0)
        losses.append(distiller(dataclasses.replace(batch, indices=indices))["crd"].item())
    assert losses[0] == losses[1] > 0


def test_a_batch_of_one_class_has_nothing_to_contrast_inside_itself() -> None:
    batch = fixed_batch("classification", 6)
    distiller, _ = make("crd", "classification", {"memory": "batch"})
    terms = distiller(dataclasses.replace(batch, labels=torch.zeros_like(batch.labels)))
    terms["loss"].backward()
    assert terms["crd"].item() == 0
    assert term_of(distiller).teacher_head.weight.grad.abs().sum() == 0
    assert distiller(batch)["crd"].item() > 0, "and the next batch sets the normalisers"


def test_any_other_sample_of_a_batch_is_a_negative_if_asked_for() -> None:
    batch = fixed_batch("classification", 6)
    distiller, _ = make("crd", "classification", {"memory": "batch", "negatives": "any"})
    student, teacher = embeddings(distiller, batch)
    others = torch.stack([torch.tensor([place, *(set(range(6)) - {place})]) for place in range(6)])
    loss, *_ = crd_loss(
        student_embedding=student,
        teacher_embedding=teacher,
        student_bank=student,
        teacher_bank=teacher,
        contrast_indices=others,
    )
    assert distiller(batch)["crd"].item() == pytest.approx(loss.item(), rel=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_labels_that_leave_no_negatives_are_refused_with_the_way_out() -> None:
    batch = fixed_batch("classification")
    batch.labels[:] = 1
    with pytest.raises(ValueError, match="sample 0 with label 1 is alike to every other.*set negatives: any.$"):
        make("crd", "classification", data=batch)
    distiller, _ = make("crd", "classification", {"negatives": "any"}, data=batch)
    assert distiller(batch)["crd"].item() > 0
    with pytest.raises(ValueError, match="kappa is a distance of scalar labels; leave it out for classes"):
        make("crd", "classification", {"kappa": 2})
    with pytest.raises(ValueError, match="sample 1 with label 2 is alike to every other.*or a smaller kappa"):
        make("crd", "regression", {"kappa": 2})


def test_f22_two_pairs_of_taps_are_refused_with_the_settings() -> None:
    with pytest.raises(ValueError, match="student_taps.*crd embeds one feature of either network, not 2"):
        method_config({"name": "crd", "student_taps": ["layer2", "layer3"], "teacher_taps": ["layer2", "layer3"]})


# --- several processes ------------------------------------------------------------------------------------------------


def test_banks_of_two_processes_stay_equal_without_being_sent_around() -> None:
    output = run_two("tests.methods.test_crd")
    lines = sorted(line.removeprefix("result: ") for line in output.splitlines() if line.startswith("result: "))
    assert lines == ["a bank is not sent around: True", "bank unlike: []", "batch unlike: []", "queue unlike: []"]


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    results = []
    for memory in ("bank", "queue", "batch"):
        distiller, _ = make("crd", "classification", {"memory": memory, "queue_size": 16})
        sharing = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        source = BatchSource(*image_sets(fixed_batch("classification")), batch_size=6, **sharing)
        fit(distiller, source, TrainingConfig(steps=3, batch_size=6), RunContext(accelerator=accelerator, seed=0))
        unlike = []
        for name, value in term_of(distiller).state_dict().items():
            copies = [torch.empty_like(value) for _ in range(2)]
            distributed.all_gather(copies, value.contiguous())
            if not torch.equal(*copies):
                unlike.append(name)
        results.append(f"{memory} unlike: {unlike}")

    distiller, _ = make("crd", "classification")
    model = accelerator.prepare(distiller)
    term_of(distiller).student_bank.rows.fill_(accelerator.process_index)
    batch = fixed_batch("classification")
    model(Batch(batch.images[:4], batch.labels[:4], batch.indices[:4], batch.is_synthetic[:4]))
    kept = bool((term_of(distiller).student_bank.rows[4:] == accelerator.process_index).all())
    both = [torch.zeros(1) for _ in range(2)]
    distributed.all_gather(both, torch.tensor([float(kept)]))
    results.append(f"a bank is not sent around: {all(map(bool, both))}")
    if accelerator.is_main_process:
        print(*(f"result: {result}" for result in results), sep="\n", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
