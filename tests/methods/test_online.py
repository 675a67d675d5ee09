"""Students that learn together: what each online method computes, what it trains, and which student it gives back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gankd.data.augment import AugmentationConfig
from gankd.distributed.processes import gather, gather_with_gradient
from gankd.losses import (
    dml_loss,
    kdcl_general_weights,
    kdcl_loss,
    mcl_loss,
    mfef_loss,
    mutual_regression_loss,
    rampup_weight,
    regression_ensemble_weights,
)
from gankd.methods import method_config, sampling_of
from gankd.methods.peers.kdcl import linear_weights
from gankd.methods.peers.mcl import MCL
from gankd.tasks import Classification
from tests.commands import run_two
from tests.methods.common import fixed_batch, make, network

AUGMENTATION = AugmentationConfig(crop_padding=1, horizontal_flip=True, brightness=0.2)
WIDE = [{"name": "small_resnet", "options": {"widths": [4, 16]}}]
UNLIKE = {"peers": 2, "peer_models": WIDE}
SETTINGS = [
    ("dml", {"share": "trunk", "target": "ensemble", "temperature": 3, "trunk_gradient": "mean"}),
    ("dml", {"peers": 3, "deploy": "best"}),
    ("dml", {**UNLIKE, "deploy": "ensemble"}),
    ("kdcl", {"ensemble": "best"}),
    ("kdcl", {"ensemble": "general", "held_out": 0.5}),
    ("okddip", {"share": "nothing", "peers": 3}),
    ("ffl", {"share": "nothing", **UNLIKE}),
    ("mfef", {"share": "nothing", "scales": 2, **UNLIKE}),
    ("afd", UNLIKE),
    ("mcl", {"form": "queue", "queue_length": 5, "logit_weight": 1, **UNLIKE}),
    ("one", {"trunk_gradient": "mean", "deploy": "ensemble"}),
]
CLASS_SETTINGS = [
    ("kdcl", {"ensemble": "min_logit"}),
    ("kdcl", {"ensemble": "linear", "peers": 3}),
    ("mcl", {"form": "memory", **UNLIKE}),
    ("mcl", {"peers": 3, "logit_weight": 1, "include_self": False}),
    ("lmcl", {"meta_every": 1, **UNLIKE}),
]
SCALAR_SETTINGS = [
    ("mcl", {"form": "batch", "positives": "vicinal", "kappa": 1}),
    ("mcl", {"form": "memory", "positives": "vicinal", "kappa": 1}),
]
CASES = [
    *((name, kind, settings) for kind in ("classification", "regression") for name, settings in SETTINGS),
    *((name, "classification", settings) for name, settings in CLASS_SETTINGS),
    *((name, "regression", settings) for name, settings in SCALAR_SETTINGS),
]


def view(distiller) -> Tensor:
    """The fixed batch as networks take it, without augmentation."""
    return distiller.normalize(fixed_batch(distiller.task.kind).images / 255)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    """Of the parameters that the loss moves."""
    parts = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [part for part in parts if part is not None and part.any()]


# --- every method, in its other settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "settings"), CASES)
def test_every_setting_trains_all_peers(name: str, kind: str, settings: dict) -> None:
    distiller, _ = make(name, kind, settings)
    distiller.start_step(10, 20, 2)
    terms = distiller(fixed_batch(kind, 7))
    assert all(term.isfinite() and term.shape == () for term in terms.values())
    terms["loss"].backward()
    for key, parameter in distiller.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, f"no gradient reaches {key}"
    outputs = distiller.deployable().eval()(view(distiller))
    assert outputs.shape == (12, distiller.task.num_outputs)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "dml", "peers": 3, "peer_models": WIDE}, "set peers: 2"),
        ({"name": "dml", "peer_models": WIDE, "deploy": "best"}, "use first"),
        ({"name": "ffl", "peer_models": WIDE}, "set share: nothing"),
        ({"name": "dml", "trunk_gradient": "mean"}, "set share: trunk"),
        ({"name": "one", "share": "nothing"}, "share"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        method_config(settings)


@pytest.mark.parametrize(
    ("name", "kind", "settings", "sentence"),
    [
        ("mcl", "regression", {"form": "batch"}, "mcl finds positives by class; set positives: vicinal"),
        ("mcl", "regression", {"form": "batch", "positives": "vicinal"}, "needs kappa"),
        ("mcl", "classification", {"positives": "vicinal"}, "positives: class"),
        ("lmcl", "regression", {}, "use method mcl"),
        ("kdcl", "regression", {"ensemble": "min_logit"}, "set ensemble: best"),
        ("kdcl", "regression", {"ensemble": "linear"}, "kdcl's linear needs the label's logit"),
        ("mfef", "classification", {"scales": 3}, "8 channels into 3"),
        ("okddip", "classification", {"share": "nothing", "peers": 3, "peer_models": WIDE * 1 + [{}]}, "pooled"),
    ],
)
def test_what_a_method_cannot_do_is_said_in_a_sentence(name: str, kind: str, settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(name, kind, settings)


# --- peers ------------------------------------------------------------------------------------------------------------


def test_peers_begin_with_an_initialisation_of_their_own() -> None:
    distiller, _ = make("dml", "classification", {"peers": 3})
    kernels = [peer.stem[0].weight for peer in distiller.networks]
    assert len({tuple(kernel.flatten().tolist()) for kernel in kernels}) == 3
    for kernel in kernels[1:]:
        assert torch.equal(kernel.flatten().sort()[0], kernels[0].flatten().sort()[0])


def test_a_branch_answers_like_the_whole_network_that_it_is_a_part_of() -> None:
    distiller, _ = make("one", "classification")
    distiller.eval()
    outputs = distiller.answer([fixed_batch("classification").images / 255]).outputs
    for index, output in enumerate(outputs):
        torch.testing.assert_close(distiller.whole(index)(view(distiller)), output)
    assert not torch.allclose(outputs[0], outputs[1])


def test_the_ensemble_is_the_mean_of_the_peers_and_the_best_the_one_with_the_lowest_running_loss() -> None:
    ensemble, _ = make("one", "classification", {"deploy": "ensemble"})
    ensemble.eval()
    outputs = ensemble.answer([fixed_batch("classification").images / 255]).outputs
    torch.testing.assert_close(ensemble.deployable()(view(ensemble)), torch.stack(outputs).mean(0))

    best, _ = make("one", "classification", {"deploy": "best"})
    best(fixed_batch("classification"))
    assert (best.label_losses > 0).all()
    best.label_losses.copy_(torch.tensor([3.0, 1.0, 2.0]))
    keys = list(network("classification", 0).state_dict())
    assert list(best.deployable().state_dict()) == keys
    torch.testing.assert_close(best.deployable().head.weight, best.others[0].network.head.weight)
    assert torch.equal(best.deployable().stem[0].weight, best.student.stem[0].weight)


def test_the_trunk_receives_the_sum_or_the_mean_of_the_branches_gradients() -> None:
    found = {}
    for mode in ("sum", "mean"):
        settings = {"share": "trunk", "trunk_gradient": mode, "peers": 3}
        distiller, _ = make("dml", "classification", settings)
        distiller(fixed_batch("classification"))["loss"].backward()
        found[mode] = distiller.student.stem[0].weight.grad, distiller.student.head.weight.grad
    torch.testing.assert_close(found["mean"][0], found["sum"][0] / 3)
    torch.testing.assert_close(found["mean"][1], found["sum"][1])


def test_the_weight_rises_in_the_first_share_of_the_run() -> None:
    distiller, _ = make("mfef", "classification", {"ramp": 0.5})
    for step in (0, 3, 10, 19):
        distiller.start_step(step, 20, 1)
        terms = distiller(fixed_batch("classification"))
        expected = terms["task"] + rampup_weight(step, 10) * (terms["fused_to_students"] + terms["students_to_fused"])
        torch.testing.assert_close(terms["loss"], expected)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_dml_is_its_loss_on_the_outputs_of_all_peers() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("dml", "classification", {"peers": 3, "temperature": 2, "weight": 0.5})
    loss = distiller(batch)["loss"]
    outputs = [peer(view(distiller)) for peer in distiller.networks]
    expected = dml_loss(student_logits=outputs, labels=batch.labels, temperature=2, kd_weight=0.5)[0]
    torch.testing.assert_close(loss, expected)


def test_dml_of_scalars_is_the_squared_differences_in_standardised_units() -> None:
    batch = fixed_batch("regression")
    distiller, _ = make("dml", "regression", {"peers": 3, "weight": 0.5})
    loss = distiller(batch)["loss"]
    outputs = [peer(view(distiller)).flatten() for peer in distiller.networks]
    labels = (batch.labels - 2) / 1.5
    torch.testing.assert_close(
        loss, mutual_regression_loss(student_predictions=outputs, labels=labels, kd_weight=0.5)[0]
    )


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_gate_of_one_learns_from_the_loss_of_the_ensemble_alone(kind: str) -> None:
    found = []
    for weight in (0, 5):
        distiller, _ = make("one", kind, {"weight": weight, "ramp": 0})
        distiller.start_step(1, 2, 1)
        found.append(gradients(distiller(fixed_batch(kind))["loss"], distiller.gate))
    assert all(gradient.abs().sum() > 0 for gradient in found[0][:1])
    torch.testing.assert_close(found[0], found[1])


def test_the_leader_of_okddip_is_the_student_and_only_targets_train_the_attention() -> None:
    distiller, _ = make("okddip", "classification", {"ramp": 0})
    distiller.start_step(1, 2, 1)
    terms = distiller(fixed_batch("classification"))
    assert gradients(terms["okddip"], distiller.query)[0].abs().sum() > 0
    assert gradients(terms["task"], distiller.query) == []
    assert 0 < terms["self_attention"] < 1
    assert distiller.deployable() is distiller.student


def test_every_student_of_kdcl_sees_its_own_view() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("kdcl", "classification", {"peers": 3}, augmentation=AUGMENTATION)
    views = []
    distiller.augment.register_forward_hook(lambda module, inputs, result: views.append(result))
    torch.manual_seed(0)
    loss = distiller(batch)["loss"]
    assert len(views) == 3 and not torch.equal(views[0], views[1])
    outputs = [peer(distiller.normalize(each)) for peer, each in zip(distiller.networks, views, strict=True)]
    torch.testing.assert_close(loss, kdcl_loss(student_logits=outputs, labels=batch.labels, ensemble="mean")[0])


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_kdcl_mixes_by_errors_on_samples_that_the_losses_leave_out(kind: str) -> None:
    batch = fixed_batch(kind, 40)
    distiller, _ = make("kdcl", kind, {"ensemble": "general", "held_out": 0.25}, data=batch)
    held_out = distiller.held_out
    assert len(held_out) == 5 and (held_out < 20).all()  # of the 20 real samples

    labels = batch.labels.clone()
    loss = distiller(batch)["loss"].item()
    batch.labels[held_out] = 1 - batch.labels[held_out].clamp(max=1)
    assert distiller(batch)["loss"].item() == pytest.approx(loss)  # their labels do not count

    assert distiller.mixture.tolist() == [0.5, 0.5]
    distiller.start_step(7, 20, 5)
    assert distiller.mixture.tolist() == [0.5, 0.5]  # in the middle of an epoch
    distiller.start_step(10, 20, 5)
    assert distiller.training
    distiller.eval()
    outputs = [peer(distiller.normalize(batch.images[held_out] / 255)) for peer in distiller.networks]
    if kind == "classification":
        weights = kdcl_general_weights(predictions=[F.softmax(o, 1) for o in outputs], labels=labels[held_out])
    else:
        predictions = [o.flatten() * 1.5 + 2 for o in outputs]
        weights = regression_ensemble_weights(predictions=predictions, labels=labels[held_out])
    torch.testing.assert_close(distiller.mixture, weights, rtol=1e-3, atol=1e-4)
    assert "mixture" in distiller.state_dict() and "held_out" in distiller.state_dict()


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(0, 50), st.sampled_from([0.1, 5, 100]))
def test_no_average_has_a_lower_cross_entropy_than_kdcl_s_linear_one(peers: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(peers, 16, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (16,), generator=generator)
    weights = linear_weights(logits, labels)
    assert weights.sum().item() == pytest.approx(1) and (weights >= 0).all()
    others = torch.distributions.Dirichlet(torch.ones(peers)).sample((50,)).double()
    others = torch.cat([others, torch.eye(peers).double(), 0.95 * weights + 0.05 * torch.eye(peers).double()])
    losses = torch.stack([F.cross_entropy(torch.tensordot(each, logits, dims=1), labels) for each in others])
    best = F.cross_entropy(torch.tensordot(weights, logits, dims=1), labels)
    assert best <= losses.min() + 1e-5 * scale


def test_the_linear_target_of_kdcl_follows_the_students_that_know_the_labels() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("kdcl", "classification", {"ensemble": "linear"})
    loss = distiller(batch)["kdcl"]
    outputs = [peer(view(distiller)) for peer in distiller.networks]
    weights = linear_weights(torch.stack(outputs), batch.labels)
    expected = kdcl_loss(student_logits=outputs, labels=batch.labels, ensemble="weighted", weights=weights)[2]
    torch.testing.assert_close(loss, expected)


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ffl", "mfef"])
def test_the_fused_classifier_teaches_and_is_taught(name: str) -> None:
    batch = fixed_batch("classification")
    distiller, _ = make(name, "classification", {"ramp": 0})
    loss = distiller(batch)["loss"]
    answers = distiller.answer([batch.images / 255])
    fused = distiller.fuse(answers.maps)
    torch.testing.assert_close(
        loss, mfef_loss(student_logits=answers.outputs, fused_logits=fused, labels=batch.labels)[0]
    )
    (group,) = distiller.parameter_groups()
    assert group["weight_decay"] == 1e-5
    fusion = {id(parameter) for parameter in group["params"]}
    assert fusion.isdisjoint(map(id, distiller.student.parameters()))
    assert fusion.isdisjoint(map(id, distiller.others.parameters()))


@pytest.mark.parametrize("detach", [False, True])
def test_the_fused_losses_reach_the_students_unless_they_are_detached(detach: bool) -> None:
    distiller, _ = make("mfef", "classification", {"detach_fusion_input": detach})
    to_fused = distiller(fixed_batch("classification"))["students_to_fused"]
    assert gradients(to_fused, distiller.extractions)
    assert bool(gradients(to_fused, distiller.student)) is not detach


def test_the_adversaries_of_afd_move_apart() -> None:
    distiller, _ = make("afd", "classification", {"peers": 3, "discriminator_rate": 0.1})
    terms = distiller(fixed_batch("classification"))
    assert gradients(terms["afd"], distiller.student) and gradients(terms["afd"], distiller.transfer)
    assert gradients(terms["afd"], distiller.discriminators) == []
    assert gradients(terms["discriminators"], distiller.discriminators)
    assert gradients(terms["discriminators"], distiller.student) == []
    assert gradients(terms["discriminators"], distiller.transfer) == []
    (group,) = distiller.parameter_groups()
    assert group["rate"] == 0.1 and len(group["params"]) == 3 * 4


def test_each_student_of_afd_is_told_from_the_next_one() -> None:
    distiller, _ = make("afd", "classification", {"peers": 3})
    maps = [torch.randn(2, 8, 2, 2) for _ in range(3)]
    fooling, telling = distiller.adversarial_losses(maps)
    judges = distiller.discriminators
    expected = sum(
        (1 - judge(other)).square().mean() + judge(own).square().mean()
        for judge, own, other in zip(judges, maps, [*maps[1:], maps[0]], strict=True)
    )
    torch.testing.assert_close(telling, expected)
    torch.testing.assert_close(
        fooling, sum((1 - judge(own)).square().mean() for judge, own in zip(judges, maps, strict=True))
    )


# --- contrast ---------------------------------------------------------------------------------------------------------


def embeddings_of(distiller: MCL) -> list[Tensor]:
    pooled = distiller.answer([fixed_batch(distiller.task.kind).images / 255]).pooled
    return [head(vector) for head, vector in zip(distiller.heads_of_peers, pooled, strict=True)]


def test_mcl_is_its_loss_on_the_embeddings_of_the_pooled_features() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("mcl", "classification")
    terms = distiller(batch)
    embeddings = embeddings_of(distiller)
    assert torch.allclose(embeddings[0].norm(dim=1), torch.ones(12))
    contrast, vcl, soft_vcl, icl, soft_icl = mcl_loss(embeddings=embeddings, labels=batch.labels)
    torch.testing.assert_close(terms["loss"], terms["task"] + contrast)
    torch.testing.assert_close(contrast, 0.1 * (vcl + icl) + soft_vcl + soft_icl)


def test_only_a_contrast_within_the_batch_needs_pairs_of_a_class() -> None:
    for form, drawn in (
        (None, "distinct_pairs"),
        ("batch", "distinct_pairs"),
        ("memory", "uniform"),
        ("queue", "uniform"),
    ):
        assert sampling_of(method_config({"name": "mcl", "form": form}), "classification") == drawn
    assert sampling_of(method_config("mcl"), "regression") == "uniform"


def test_labels_within_kappa_take_the_part_of_a_class() -> None:
    embeddings = [F.normalize(torch.randn(6, 4), dim=1) for _ in range(2)]
    classes = torch.tensor([0, 1, 0, 1, 2, 2])
    noise = 0.1 * torch.rand(6)
    by_class = mcl_loss(embeddings=embeddings, labels=classes)
    torch.testing.assert_close(mcl_loss(embeddings=embeddings, labels=classes + noise, kappa=0.2), by_class)
    everybody = mcl_loss(embeddings=embeddings, labels=classes + noise, kappa=10)
    assert not torch.allclose(everybody[1], by_class[1])


def test_the_rows_of_a_batch_in_the_banks_move_to_its_embeddings() -> None:
    distiller, _ = make(
        "mcl", "classification", {"form": "memory", "bank_momentum": 0}, data=fixed_batch("classification", 20)
    )
    before, embeddings = [bank.rows.clone() for bank in distiller.banks], embeddings_of(distiller)
    distiller(fixed_batch("classification"))  # the samples 0..11 of 20
    for bank, rows, embedding in zip(distiller.banks, before, embeddings, strict=True):
        torch.testing.assert_close(bank.rows[:12], embedding.detach())
        assert torch.equal(bank.rows[12:], rows[12:])
    distiller.eval()
    before = [bank.rows.clone() for bank in distiller.banks]
    distiller(fixed_batch("classification"))
    assert all(torch.equal(bank.rows, rows) for bank, rows in zip(distiller.banks, before, strict=True))
    assert {"banks.0.rows", "banks.1.rows"} <= distiller.state_dict().keys()


def test_queues_hold_the_latest_keys_of_slowly_following_encoders() -> None:
    data = fixed_batch("classification", 30)
    distiller, _ = make("mcl", "classification", {"form": "queue", "encoder_momentum": 0.9}, data=data)
    assert distiller.keys.bank.rows.shape == (30, 2, 128)  # no longer than the data
    key, query = distiller.keys.encoders[1].head.weight, distiller.others[0].head.weight
    assert torch.equal(key, query) and not key.requires_grad
    with torch.no_grad():
        query.add_(1)
    expected = 0.9 * key + 0.1 * query
    before = distiller.keys.bank.rows.clone()
    distiller(fixed_batch("classification"))
    torch.testing.assert_close(distiller.keys.encoders[1].head.weight, expected)
    assert torch.equal(distiller.keys.bank.rows[12:], before[12:])
    assert not torch.isclose(distiller.keys.bank.rows[:12], before[:12]).all(2).any()
    torch.testing.assert_close(distiller.keys.bank.rows.norm(dim=2), torch.ones(30, 2))
    distiller(fixed_batch("classification"))
    distiller(fixed_batch("classification"))
    assert distiller.keys.end == 6  # 36 keys in a ring of 30


def test_of_more_than_two_peers_only_the_student_follows_their_mean() -> None:
    for peers, taught in ((2, [True, True]), (3, [True, False, False])):
        distiller, _ = make("mcl", "classification", {"peers": peers, "logit_weight": 1})
        loss = distiller(fixed_batch("classification"))["logits"]
        assert [bool(gradients(loss, peer)) for peer in distiller.networks] == taught


def test_a_meta_step_moves_the_meta_network_and_nothing_else() -> None:
    distiller, _ = make("lmcl", "classification", {"meta_every": 3})
    batch = fixed_batch("classification")
    images = distiller.normalize(batch.images / 255)
    before = {key: value.clone() for key, value in distiller.state_dict().items()}
    distiller.step_meta_network(images, batch.labels)
    moved = {key.split(".")[0] for key, value in distiller.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"meta", "meta_velocity"}
    assert [steps for steps in range(9) if distiller.start_step(steps, 9, 1) or distiller.is_meta_step] == [2, 5, 8]


class DoubleClassification(Classification):
    """Its loss in the precision of the outputs, for difference quotients."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels)


def test_the_meta_network_descends_the_label_loss_after_the_inner_steps() -> None:
    distiller, _ = make("lmcl", "classification", {"meta_rate": 0.05, "vcl_weight": 5, "icl_weight": 5})
    distiller.double().task = DoubleClassification(distiller.task.class_names)
    labels, images = fixed_batch("classification").labels, view(distiller)
    start = parameters_to_vector(distiller.meta.parameters())
    distiller.step_meta_network(images, labels)
    gradient = (start - parameters_to_vector(distiller.meta.parameters())) / 0.05
    values = []
    # not to the last digit: what peers follow in an inner step is detached there
    for change in (1e-5, -1e-5):
        vector_to_parameters(start + change * gradient / gradient.norm(), distiller.meta.parameters())
        values.append(distiller.loss_after_inner_steps(images, labels, dict(distiller.meta.named_parameters())).item())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient.norm().item(), rel=0.01)

    vector_to_parameters(start.clone(), distiller.meta.parameters())
    distiller.step_meta_network(images, labels)
    moved = (start - parameters_to_vector(distiller.meta.parameters())) / 0.05
    torch.testing.assert_close(moved, (1 + 0.9) * gradient)  # with momentum


def test_every_stage_of_a_peer_has_a_branch_a_head_and_a_share_of_the_aggregate() -> None:
    distiller, _ = make("lmcl", "classification", student_widths=(4, 8, 8))
    peer = distiller.peers[0]
    assert len(peer.branches) == 2 and len(peer.heads) == len(distiller.meta[0]) == 3
    stages = peer(distiller.student, view(distiller))
    torch.testing.assert_close(stages.outputs[-1], distiller.student(view(distiller)))
    low, high = torch.stack(stages.outputs).amin(0), torch.stack(stages.outputs).amax(0)
    assert ((stages.aggregate >= low - 1e-5) & (stages.aggregate <= high + 1e-5)).all()


# --- several processes ------------------------------------------------------------------------------------------------


def test_the_contrast_of_two_processes_is_that_of_their_joint_batch() -> None:
    output = run_two("tests.methods.test_online")
    assert output.count("result: equal") == 2


def main() -> None:
    """Either process has half of the rows; the mean of both gradients is what data-parallel training takes."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    inputs, labels = torch.randn(2, 8, 4), torch.tensor([0, 1, 0, 1, 1, 2, 2, 0])
    weight = torch.randn(4, 3, requires_grad=True)
    own = inputs[:, rank * 4 : (rank + 1) * 4]
    local = [gather_with_gradient(F.normalize(rows @ weight, dim=1)) for rows in own]
    mcl_loss(embeddings=local, labels=gather(labels[rank * 4 : (rank + 1) * 4]))[0].backward()
    mean = weight.grad.clone()
    distributed.all_reduce(mean)
    whole = mcl_loss(embeddings=[F.normalize(rows @ weight, dim=1) for rows in inputs], labels=labels)[0]
    (expected,) = torch.autograd.grad(whole, weight)
    torch.testing.assert_close(mean / 2, expected)
    print("result: equal", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
