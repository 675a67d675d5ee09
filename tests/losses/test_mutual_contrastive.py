"""Mutual contrastive learning against its equations in plain loops, and its laws."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gankd.losses import (
    ensemble_logit_loss,
    layer_matching_weights,
    layerwise_mcl_loss,
    mcl_loss,
    mcl_memory_loss,
    mcl_queue_loss,
)

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])  # class 2 occurs once


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def unit(rng: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=rng, dtype=torch.float64), dim=-1)


def peers(rng: torch.Generator, count: int = 3, num_samples: int = 6) -> list[Tensor]:
    return [unit(rng, num_samples, 4).requires_grad_() for _ in range(count)]


# --- the equations, an anchor and a pair at a time --------------------------------------------------------------------


def nce_row(similarities: Tensor, positives: list[int]) -> Tensor:
    return -torch.stack([similarities.log_softmax(0)[column] for column in positives]).mean()


def kl_row(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    p, q = (target.detach() / temperature).softmax(0), (student / temperature).softmax(0)
    return temperature**2 * sum(p[k] * (p[k] / q[k]).log() for k in range(len(p)))


def in_batch_terms(a: Tensor, b: Tensor, labels: Tensor, weight: Tensor, *, tau: float, temperature: float) -> Tensor:
    """The four terms of two embeddings: VCL, softVCL, ICL, softICL."""
    terms = torch.zeros(4, dtype=torch.float64)
    similarity = {
        (i, j): first @ second.T / tau for (i, first), (j, second) in itertools.product(enumerate([a, b]), repeat=2)
    }
    anchors = [n for n in range(len(labels)) if (labels == labels[n]).sum() > 1]
    for n in range(len(labels)):
        others = [m for m in range(len(labels)) if m != n]
        positives = [column for column, m in enumerate(others) if labels[m] == labels[n]]
        for i, j in [(0, 1), (1, 0)]:
            own, other = similarity[i, i][n], similarity[i, j][n]
            if n in anchors:
                terms[0] = terms[0] + weight[n] * nce_row(own[others], positives) / len(anchors)
                terms[2] = terms[2] + weight[n] * nce_row(other[others], positives) / len(anchors)
            terms[1] = terms[1] + weight[n] * kl_row(own, similarity[j, j][n], temperature) / len(labels)
            terms[3] = terms[3] + weight[n] * kl_row(other, similarity[j, i][n], temperature) / len(labels)
    return terms


def test_mcl_in_the_batch_is_the_sum_over_peers_and_pairs(rng: torch.Generator) -> None:
    embeddings, ones = peers(rng), torch.ones(6, dtype=torch.float64)
    total, *terms = mcl_loss(embeddings=embeddings, labels=LABELS, contrastive_temperature=0.2, temperature=2.0)
    pairs = [
        in_batch_terms(a, b, LABELS, ones, tau=0.2, temperature=2.0) for a, b in itertools.combinations(embeddings, 2)
    ]
    expected = sum(pairs) * torch.tensor([1 / 2, 1, 1, 1])  # each of three peers is in two pairs
    torch.testing.assert_close(torch.stack(terms), expected)
    torch.testing.assert_close(total, expected @ torch.tensor([0.1, 1.0, 0.1, 1.0], dtype=torch.float64))
    gradients = torch.autograd.grad(total, embeddings)
    expected_total = expected @ torch.tensor([0.1, 1.0, 0.1, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_total, embeddings))


def test_layerwise_mcl_visits_every_ordered_pair_of_peers_and_stages(rng: torch.Generator) -> None:
    stages = [peers(rng, 2), peers(rng, 1), peers(rng, 2)]  # peers may have different numbers of stages
    pairs = [
        (first, second)
        for a, b in itertools.permutations(range(3), 2)
        for first, second in itertools.product(stages[a], stages[b])
    ]
    weights = [torch.rand(6, generator=rng, dtype=torch.float64).requires_grad_() for _ in pairs]
    total, *terms = layerwise_mcl_loss(embeddings=stages, labels=LABELS, matching_weights=weights, temperature=2.0)
    expected = sum(
        in_batch_terms(*pair, LABELS, weight, tau=0.1, temperature=2.0)
        for pair, weight in zip(pairs, weights, strict=True)
    )
    torch.testing.assert_close(torch.stack(terms), expected)
    expected_total = expected @ torch.tensor([0.1, 1.0, 0.1, 1.0], dtype=torch.float64)
    leaves = [*itertools.chain(*stages), *weights]
    torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(expected_total, leaves))


def test_matching_weights_are_sigmoids_of_cosines_in_the_order_of_the_pairs(rng: torch.Generator) -> None:
    features = [[torch.randn(3, 5, generator=rng, dtype=torch.float64) for _ in range(2)] for _ in range(3)]
    expected = [
        torch.stack([1 / (1 + (-x @ y / (x.norm() * y.norm())).exp()) for x, y in zip(first, second, strict=True)])
        for a in range(3)
        for b in range(3)
        if b != a
        for first in features[a]
        for second in features[b]
    ]
    torch.testing.assert_close(layer_matching_weights(projected_features=features), expected)


def test_mcl_with_banks_compares_with_the_rows_at_the_indices(rng: torch.Generator) -> None:
    embeddings = peers(rng, num_samples=4)
    banks = [unit(rng, 20, 4).requires_grad_() for _ in range(3)]
    positive_indices = torch.randint(20, (4, 3), generator=rng)
    negative_indices = torch.randint(20, (4, 6), generator=rng)
    total, *terms = mcl_memory_loss(
        embeddings=embeddings, banks=banks, positive_indices=positive_indices, negative_indices=negative_indices
    )
    expected = torch.zeros(4, dtype=torch.float64)
    for n in range(4):
        indices = [*positive_indices[n].tolist(), *negative_indices[n].tolist()]
        rows = [[bank.detach()[indices] @ v[n] / 0.07 for bank in banks] for v in embeddings]
        for i in range(3):
            expected[0] = expected[0] + nce_row(rows[i][i][1:], [0, 1]) / 4
        for i, j in itertools.permutations(range(3), 2):
            expected[1] = expected[1] + kl_row(rows[i][i][1:], rows[j][j][1:], 3.0) / 4
            expected[2] = expected[2] + nce_row(rows[i][j], [0, 1, 2]) / 4
            expected[3] = expected[3] + kl_row(rows[i][j], rows[j][i], 3.0) / 4
    torch.testing.assert_close(torch.stack(terms), expected)
    expected_total = expected @ torch.tensor([0.1, 1.0, 0.1, 1.0], dtype=torch.float64)
    gradients = torch.autograd.grad(total, embeddings, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_total, embeddings))
    total.backward()
    assert all(bank.grad is None for bank in banks)


def test_mcl_with_queues_finds_its_key_among_the_negatives(rng: torch.Generator) -> None:
    queries, keys = peers(rng, num_samples=4), peers(rng, num_samples=4)
    queues = unit(rng, 3, 7, 4).transpose(1, 2)
    total, *terms = mcl_queue_loss(queries=queries, keys=keys, queues=queues)
    expected = torch.zeros(4, dtype=torch.float64)
    for n in range(4):
        rows = [
            [
                torch.cat([(q[n] @ k.detach()[n])[None], q[n] @ queue]) / 0.07
                for k, queue in zip(keys, queues, strict=True)
            ]
            for q in queries
        ]
        for i in range(3):
            expected[0] = expected[0] + nce_row(rows[i][i], [0]) / 4
        for i, j in itertools.permutations(range(3), 2):
            expected[1] = expected[1] + kl_row(rows[i][i], rows[j][j], 3.0) / 4
            expected[2] = expected[2] + nce_row(rows[i][j], [0]) / 4
            expected[3] = expected[3] + kl_row(rows[i][j], rows[j][i], 3.0) / 4
    torch.testing.assert_close(torch.stack(terms), expected)
    gradients = torch.autograd.grad(total, queries, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), queries))
    total.backward()
    assert all(key.grad is None for key in keys)


# --- laws -------------------------------------------------------------------------------------------------------------


def test_two_peers_of_one_stage_matched_by_half_are_plain_mcl(rng: torch.Generator) -> None:
    embeddings = peers(rng, 2)
    halves = [torch.full((6,), 0.5)] * 2  # a pair is visited from both sides
    layerwise = layerwise_mcl_loss(embeddings=[[v] for v in embeddings], labels=LABELS, matching_weights=halves)
    torch.testing.assert_close(layerwise, mcl_loss(embeddings=embeddings, labels=LABELS))


def test_peers_that_agree_have_nothing_to_tell_each_other(rng: torch.Generator) -> None:
    embeddings = unit(rng, 6, 4)
    _, vcl, soft_vcl, icl, soft_icl = mcl_loss(embeddings=[embeddings, embeddings, embeddings], labels=LABELS)
    assert soft_vcl.item() == pytest.approx(0, abs=1e-14)
    assert soft_icl.item() == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(icl, 2 * vcl)  # 6 ordered pairs against 3 peers


def test_what_happens_within_a_peer_ignores_rotations_of_its_space(rng: torch.Generator) -> None:
    embeddings = peers(rng, 2)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64)).Q
    _, vcl, soft_vcl, *_ = mcl_loss(embeddings=embeddings, labels=LABELS)
    rotated = mcl_loss(embeddings=[embeddings[0] @ rotation, embeddings[1]], labels=LABELS)
    torch.testing.assert_close(rotated[1:3], (vcl, soft_vcl))


def test_mcl_ignores_the_order_of_the_batch_and_of_the_peers(rng: torch.Generator) -> None:
    embeddings, order = peers(rng), torch.randperm(6, generator=rng)
    permuted = mcl_loss(embeddings=[v[order] for v in embeddings[::-1]], labels=LABELS[order])
    torch.testing.assert_close(permuted, mcl_loss(embeddings=embeddings, labels=LABELS))


@pytest.mark.parametrize("num_samples", [1, 2, 6])
@pytest.mark.parametrize("include_self", [True, False])
def test_without_two_images_of_a_class_only_the_soft_terms_are_left(
    rng: torch.Generator, num_samples: int, include_self: bool
) -> None:
    embeddings = peers(rng, num_samples=num_samples)
    total, vcl, soft_vcl, icl, soft_icl = mcl_loss(
        embeddings=embeddings, labels=torch.arange(num_samples), include_self=include_self, temperature=0.5
    )
    total.backward()
    assert vcl.item() == icl.item() == 0
    torch.testing.assert_close(total, soft_vcl + soft_icl)
    assert all(v.grad.isfinite().all() for v in embeddings)


def test_the_similarity_to_oneself_can_be_left_out_of_the_soft_terms(rng: torch.Generator) -> None:
    embeddings = peers(rng, 2)
    _, _, soft_vcl, _, soft_icl = mcl_loss(embeddings=embeddings, labels=LABELS, include_self=False)
    off_diagonal = [
        [(a @ b.T / 0.1)[~torch.eye(6, dtype=torch.bool)].view(6, 5) for b in embeddings] for a in embeddings
    ]
    expected_vcl = expected_icl = 0
    for n, (i, j) in itertools.product(range(6), [(0, 1), (1, 0)]):
        expected_vcl = expected_vcl + kl_row(off_diagonal[i][i][n], off_diagonal[j][j][n], 3.0) / 6
        expected_icl = expected_icl + kl_row(off_diagonal[i][j][n], off_diagonal[j][i][n], 3.0) / 6
    torch.testing.assert_close((soft_vcl, soft_icl), (expected_vcl, expected_icl))


def test_a_tiny_contrastive_temperature_stays_finite_in_float32(rng: torch.Generator) -> None:
    embeddings = [v.detach().float().requires_grad_() for v in peers(rng)]
    total, *_ = mcl_loss(embeddings=embeddings, labels=LABELS, contrastive_temperature=1e-3)  # exp(1000) is infinite
    total.backward()
    assert total.isfinite()
    assert all(v.grad.isfinite().all() for v in embeddings)


def in_batch(embeddings: list[Tensor]) -> tuple[Tensor, ...]:
    return mcl_loss(embeddings=embeddings, labels=LABELS)


def layerwise(embeddings: list[Tensor]) -> tuple[Tensor, ...]:
    stages = [[v] for v in embeddings]
    weights = layer_matching_weights(projected_features=stages)
    return layerwise_mcl_loss(embeddings=stages, labels=LABELS, matching_weights=weights)


def against_banks(embeddings: list[Tensor]) -> tuple[Tensor, ...]:
    indices = torch.arange(6)[:, None]
    return mcl_memory_loss(
        embeddings=embeddings,
        banks=embeddings,
        positive_indices=torch.cat([indices, indices], dim=1),
        negative_indices=(indices + torch.arange(1, 4)) % 6,
    )


def against_queues(embeddings: list[Tensor]) -> tuple[Tensor, ...]:
    return mcl_queue_loss(queries=embeddings, keys=embeddings, queues=torch.stack(embeddings).transpose(1, 2))


every_form = pytest.mark.parametrize("loss", [in_batch, layerwise, against_banks, against_queues])


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_give_the_float32_result(rng: torch.Generator, loss, dtype: torch.dtype) -> None:
    embeddings = [v.detach().to(dtype) for v in peers(rng)]
    values = loss(embeddings)
    assert all(value.dtype == torch.float32 for value in values)
    torch.testing.assert_close(values, loss([v.float() for v in embeddings]))


@every_form
def test_autocast_changes_nothing(rng: torch.Generator, loss) -> None:
    embeddings = [v.detach().float() for v in peers(rng)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = loss(embeddings)
    torch.testing.assert_close(values, loss(embeddings), rtol=0, atol=0)


# --- ensemble_logit_loss ----------------------------------------------------------------------------------------------


def test_taught_peers_follow_the_mean_of_all_and_the_mean_follows_nobody(rng: torch.Generator) -> None:
    logits = [torch.randn(4, 3, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(3)]
    loss = ensemble_logit_loss(student_logits=logits[-1:], ensemble_logits=logits)
    mean = torch.stack(logits).mean(0)
    torch.testing.assert_close(loss, sum(kl_row(logits[-1][n], mean[n], 3.0) for n in range(4)) / 4)
    loss.backward()
    assert logits[0].grad is None
    assert logits[-1].grad.abs().sum() > 0


def test_taught_peers_that_are_the_mean_cost_nothing(rng: torch.Generator) -> None:
    logits = torch.randn(1, 2, generator=rng, dtype=torch.float64)
    assert ensemble_logit_loss(student_logits=[logits], ensemble_logits=[logits - 1, logits + 1]).item() == (
        pytest.approx(0, abs=1e-14)
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def test_one_peer_is_refused(rng: torch.Generator) -> None:
    for loss in (in_batch, layerwise, against_banks, against_queues):
        with pytest.raises(ValueError, match="at least 2 peers, got 1"):
            loss(peers(rng, 1))


def test_shapes_that_do_not_fit_are_named(rng: torch.Generator) -> None:
    embeddings = peers(rng, 2)
    with pytest.raises(ValueError, match=r"embeddings need one shape, found \[6, 4\], \[5, 4\]"):
        mcl_loss(embeddings=[embeddings[0], embeddings[1][:5]], labels=LABELS)
    with pytest.raises(ValueError, match=r"labels should be \[6\] class ids, found \[5\]"):
        mcl_loss(embeddings=embeddings, labels=LABELS[:5])
    with pytest.raises(ValueError, match="2 pairs of stages need as many matching weights, got 1"):
        layerwise_mcl_loss(embeddings=[[v] for v in embeddings], labels=LABELS, matching_weights=[torch.ones(6)])
    with pytest.raises(ValueError, match=r"queues \[2, 4\] \+ \[length\], found \[2, 6, 4\] and \[2, 7, 4\]"):
        mcl_queue_loss(queries=embeddings, keys=embeddings, queues=torch.zeros(2, 7, 4))


def test_banks_need_a_positive_and_a_bank_for_each_peer(rng: torch.Generator) -> None:
    embeddings, indices = peers(rng, 2), torch.zeros(6, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="at least 1 positive, found 1 column"):
        mcl_memory_loss(embeddings=embeddings, banks=embeddings, positive_indices=indices, negative_indices=indices)
    with pytest.raises(ValueError, match="2 peers needs its bank, got 1"):
        mcl_memory_loss(embeddings=embeddings, banks=embeddings[:1], positive_indices=indices, negative_indices=indices)
