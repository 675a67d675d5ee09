"""The synthesis with a real (tiny, untrained) generator and teacher: what ends up in the store, and that nothing but the
inputs decides it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

import gankd
from gankd.data.sets import ImageSet, LazyImages
from gankd.models import SmallResNet
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.synthesis.config import SynthesisConfig
from gankd.synthesis.selection import Scores, subsample
from gankd.synthesis.stage import Synthesis
from gankd.synthesis.store import load_store, read_manifest, read_tensors, write_tensors
from gankd.tasks import Regression, task_of
from generators.images import to_unit_range
from generators.interface import ConditionalGenerator
from generators.networks.sngan import SNGANGenerator

SUBSAMPLING = {
    "widths": (32, 32),
    "dropout": 0.0,
    "steps": 30,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "burn_in": 8,
    "bound": 1,
}
CONFIG = SynthesisConfig(
    num_samples=31, chunk_size=10, shard_size=12, rho=0.8, force=True, subsample={**SUBSAMPLING, "label_bins": 3}
)
PLAIN = CONFIG.replace(subsample={"enabled": False})
KINDS = ["classification", "regression"]


class Interruption(Exception):
    """Stands for a killed process."""


def make_real(kind: str, size: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (40, 1, 2, 2), generator=generator, dtype=torch.uint8)
    images = blocks.repeat_interleave(size // 2, dim=2).repeat_interleave(size // 2, dim=3)
    if kind == "classification":
        return ImageSet(images, torch.arange(40) % 3, class_names=("a", "b", "c"))
    return ImageSet(images, torch.linspace(-30, 60, 40))


def make_generator(kind: str, size: int = 8, label_input: str | None = None) -> ConditionalGenerator:
    """Untrained, but with batch norm statistics of its own, so that its images differ."""
    labels = {"num_classes": 3} if kind == "classification" else {"label_range": (-40.0, 60.0)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = SNGANGenerator(
            resolution=size,
            image_channels=1,
            widths=(8, 8),
            latent_dim=4,
            label_dim=32,
            label_input=label_input or ("embedding" if kind == "classification" else "fourier"),
            **labels,
        )
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.mul_(2)
            y = torch.arange(256) % 3
            generator.train()(torch.randn(256, 4), y if kind == "classification" else y / 2)
    return generator.eval().requires_grad_(False)


def make_teacher(real: ImageSet) -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = SmallResNet(task_of(real).num_outputs, in_channels=1, widths=(8, 16))
        module.train()(torch.randn(64, 1, 2, 2).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))
    return Teacher(module, Normalize.of(real.images))


def make(kind: str, directory: Path, config: SynthesisConfig = CONFIG, *, seed: int = 0, **keywords) -> Synthesis:
    real = keywords.pop("real", None) or make_real(kind)
    generator = keywords.pop("generator", None) or make_generator(kind)
    return Synthesis(
        generator,
        make_teacher(real),
        task_of(real),
        real,
        config,
        directory=directory,
        seed=seed,
        accelerator=Accelerator(),
        **keywords,
    )


def run(kind: str, directory: Path, config: SynthesisConfig = CONFIG, **keywords) -> ImageSet:
    make(kind, directory, config, **keywords).run()
    return load_store(directory)


def rows(directory: Path) -> dict[str, Tensor]:
    """All tensors of a store."""
    shards = [load_file(directory / shard["file"]) for shard in read_manifest(directory)["shards"]]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def contents(directory: Path) -> dict[str, str]:
    """Hashes of the files of a store."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.suffix in (".safetensors", ".json")
    }


@pytest.fixture(scope="module", params=KINDS)
def store(request, tmp_path_factory) -> tuple[str, Path]:
    """A finished store for either kind of label, with M1 and M2 on; not to be changed."""
    directory = tmp_path_factory.mktemp(request.param) / "synthetic"
    run(request.param, directory)
    return request.param, directory


# --- what ends up in the store ----------------------------------------------------------------------------------------


def test_the_store_is_complete_in_shards_with_a_manifest_that_describes_them(store) -> None:
    kind, directory = store
    manifest, samples = read_manifest(directory), rows(directory)
    assert [shard["num_samples"] for shard in manifest["shards"]] == [12, 12, 7]
    assert all(
        hashlib.sha256((directory / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
        for shard in manifest["shards"]
    )
    expected = {"images", "labels", "generator_labels", "teacher_outputs", "errors", "candidates", "ratios"}
    assert set(samples) == expected and all(len(values) == 31 for values in samples.values())
    assert samples["images"].dtype == torch.uint8 and samples["images"].shape == (31, 1, 8, 8)
    assert samples["images"].float().std(dim=0).min() > 1, "images that are all the same would hide a mix-up"

    assert manifest["num_samples"] == 31 and manifest["task"] == kind and manifest["seed"] == 0
    assert manifest["rho"] == 0.8 and manifest["num_candidates"] % 10 == 0
    assert 0 < manifest["kept_rate"] <= manifest["acceptance_rate"] < 1
    assert len(manifest["bounds"]) == 3 and all(bound > 0 for bound in manifest["bounds"])
    assert manifest["labels_replaced"] is (kind == "regression")
    assert manifest["class_names"] == (["a", "b", "c"] if kind == "classification" else None)
    assert SynthesisConfig(**manifest["config"]) == CONFIG
    assert set(manifest["label_score"]) == {"candidates", "subsampled", "filtered"}


def test_the_loaded_store_is_a_synthetic_set_with_the_teachers_outputs(store) -> None:
    kind, directory = store
    loaded, samples = load_store(directory), rows(directory)
    assert len(loaded) == 31 and loaded.is_synthetic
    assert loaded.class_names == (("a", "b", "c") if kind == "classification" else None)
    for name in ("images", "labels", "teacher_outputs"):
        assert torch.equal(getattr(loaded, name), samples[name])
    assert loaded.labels.dtype == (torch.int64 if kind == "classification" else torch.float32)


def test_classes_are_balanced_and_the_remainder_goes_to_the_last(tmp_path: Path) -> None:
    labels = run("classification", tmp_path).labels
    assert torch.bincount(labels).tolist() == [10, 10, 11]


def test_scalars_cover_the_range_of_the_real_labels_and_no_more(store) -> None:
    kind, directory = store
    if kind == "regression":
        labels = load_file(directory / "scores.safetensors")["labels"]
        assert -30 <= labels.min() < -20 and 50 < labels.max() <= 60


def test_every_sample_is_what_its_label_and_its_scores_say(store) -> None:
    """Teacher's outputs, errors and final labels belong to the stored (rounded) image, not to another one."""
    kind, directory = store
    samples, real = rows(directory), make_real(kind)
    task, teacher = task_of(real), make_teacher(real)
    outputs = teacher(to_unit_range(samples["images"]))
    torch.testing.assert_close(samples["teacher_outputs"], outputs, rtol=1e-4, atol=1e-5)
    errors = task.error(samples["teacher_outputs"], samples["generator_labels"])
    torch.testing.assert_close(samples["errors"], errors)
    if kind == "regression":
        assert torch.equal(samples["labels"], task.replace(samples["teacher_outputs"], samples["generator_labels"]))
        assert not torch.equal(samples["labels"], samples["generator_labels"])
    else:
        assert torch.equal(samples["labels"], samples["generator_labels"])
    task.check(samples["labels"], "synthetic")


def test_the_scores_tell_the_fate_of_every_candidate(store) -> None:
    kind, directory = store
    scores, samples = load_file(directory / "scores.safetensors"), rows(directory)
    manifest = read_manifest(directory)
    accepted, kept, indices = scores["accepted"], scores["kept"], samples["candidates"]
    assert len(accepted) == manifest["num_candidates"]
    assert accepted.float().mean().item() == pytest.approx(manifest["acceptance_rate"])
    assert kept.float().mean().item() == pytest.approx(manifest["kept_rate"])
    assert not (kept & ~accepted).any() and kept[indices].all() and (indices.diff() > 0).all()
    assert torch.equal(scores["errors"][indices], samples["errors"])
    assert torch.equal(scores["labels"][indices], samples["generator_labels"])
    thresholds = torch.tensor(manifest["thresholds"])
    limit = thresholds[scores["labels"]] if kind == "classification" else thresholds
    assert torch.equal(kept, accepted & (scores["errors"] < limit))
    groups = scores["labels"] if kind == "classification" else ((scores["labels"] + 30) / 30).long().clamp(0, 2)
    for group in range(3):
        members = (groups == group) & accepted
        if kind == "classification":
            assert 0.8 * (members.sum() - 1) - 1e-4 <= (kept & members).sum() <= 0.8 * (members.sum() - 1) + 1


def test_the_rejections_follow_from_the_ratios_the_bounds_and_the_candidates_own_draws(tmp_path: Path) -> None:
    synthesis = make("classification", tmp_path)
    synthesis.run()
    scores, bounds = load_file(tmp_path / "scores.safetensors"), torch.tensor(read_manifest(tmp_path)["bounds"])
    stream = synthesis.stream("candidates", synthesis.ratio_model(), keep_images=True)
    num_chunks = len(scores["labels"]) // 10
    drawn = [stream.draw(chunk) for chunk in range(num_chunks)]
    join = lambda name: torch.cat([chunk[name] for chunk in drawn])  # noqa: E731
    assert torch.equal(join("ratios"), scores["ratios"])
    again = Scores(
        labels=join("labels"),
        groups=join("labels"),
        chunks=torch.arange(num_chunks).repeat_interleave(10),
        errors=join("errors"),
        uniforms=join("uniforms"),
        ratios=join("ratios"),
    )
    assert torch.equal(subsample(again, bounds, growing=True), scores["accepted"])
    assert torch.equal(join("images")[rows(tmp_path)["candidates"]], rows(tmp_path)["images"])


def test_the_examples_show_every_fate(store) -> None:
    _kind, directory = store
    examples, scores = load_file(directory / "examples.safetensors"), load_file(directory / "scores.safetensors")
    fates = {
        "kept": scores["kept"],
        "ratio": ~scores["accepted"],
        "teacher": scores["accepted"] & ~scores["kept"],
    }
    assert set(examples) == {f"{fate}.{name}" for fate in fates for name in ("images", "labels", "errors")}
    for fate, members in fates.items():
        errors = examples[f"{fate}.errors"]
        assert len(errors) == len(examples[f"{fate}.images"]) == len(examples[f"{fate}.labels"]) > 0
        assert torch.isin(errors, scores["errors"][members]).all()


def test_only_the_store_stays_behind(store) -> None:
    _, directory = store
    left = {path.name for path in directory.iterdir() if not path.name.startswith("shard-")}
    assert left == {"scores.safetensors", "examples.safetensors", "manifest.json", "density_ratio.safetensors"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replace", [True, False])
def test_labels_are_replaced_or_kept_as_asked(tmp_path: Path, kind: str, replace: bool) -> None:
    loaded = run(kind, tmp_path, PLAIN.replace(replace_labels=replace))
    samples, task = rows(tmp_path), task_of(make_real(kind))
    asked = task.predict(samples["teacher_outputs"]) if replace else samples["generator_labels"]
    assert torch.equal(loaded.labels, asked)
    assert read_manifest(tmp_path)["labels_replaced"] is replace


@pytest.mark.parametrize("kind", KINDS)
def test_without_modules_every_candidate_is_kept(tmp_path: Path, kind: str) -> None:
    run(kind, tmp_path, PLAIN.replace(rho=None))
    manifest, samples = read_manifest(tmp_path), rows(tmp_path)
    assert manifest["acceptance_rate"] == manifest["kept_rate"] == 1
    assert manifest["bounds"] is manifest["thresholds"] is manifest["rho"] is None
    if kind == "regression":
        assert torch.equal(samples["candidates"], torch.arange(31))
    assert not (tmp_path / "density_ratio.safetensors").exists()


def test_candidates_are_drawn_in_waves_until_there_are_enough(tmp_path: Path) -> None:
    run("classification", tmp_path, PLAIN.replace(rho=0.2))
    manifest = read_manifest(tmp_path)
    assert manifest["num_candidates"] >= 31 / 0.2
    assert 0.1 < manifest["kept_rate"] < 0.25


def test_a_fixed_bound_is_a_quantile_of_the_burn_in(tmp_path: Path) -> None:
    config = CONFIG.replace(subsample={**SUBSAMPLING, "bound": 0.5})
    run("classification", tmp_path, config)
    scores, bounds = load_file(tmp_path / "scores.safetensors"), torch.tensor(read_manifest(tmp_path)["bounds"])
    assert scores["accepted"][scores["ratios"] >= bounds[scores["labels"]]].all()


# --- nothing but the inputs decides -----------------------------------------------------------------------------------


def same(first: Path, second: Path) -> bool:
    return contents(first) == contents(second)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_gives_others(store, tmp_path: Path) -> None:
    kind, directory = store
    run(kind, tmp_path / "again")
    assert same(tmp_path / "again", directory)
    other = run(kind, tmp_path / "other", seed=1)
    assert not torch.equal(other.images, load_store(directory).images)


def test_images_that_are_read_lazily_give_the_same_bytes(store, tmp_path: Path) -> None:
    kind, directory = store
    real = make_real(kind)
    lazy = LazyImages(real.images.__getitem__, tuple(real.images.shape))
    run(kind, tmp_path, real=ImageSet(lazy, real.labels, class_names=real.class_names))
    assert same(tmp_path, directory)


@pytest.mark.parametrize("chunks", [[3, 0], [5, 4, 3, 2, 1, 0], [9]])
def test_chunks_that_another_process_or_an_earlier_run_drew_are_used(store, tmp_path: Path, chunks: list[int]) -> None:
    kind, directory = store
    synthesis = make(kind, tmp_path)
    stream = synthesis.stream("candidates", synthesis.ratio_model(), keep_images=True)
    for chunk in chunks:
        write_tensors(stream.file(chunk), stream.draw(chunk))
    run(kind, tmp_path)
    assert same(tmp_path, directory)


def test_a_chunk_is_the_same_whoever_draws_it_and_when(tmp_path: Path) -> None:
    synthesis = make("classification", tmp_path, PLAIN)
    stream = synthesis.stream("candidates", None, keep_images=True)
    first = stream.draw(3)
    torch.manual_seed(99)
    make("classification", tmp_path, PLAIN).stream("candidates", None, keep_images=True).draw(0)
    again = stream.draw(3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(first["labels"], torch.arange(30, 40) % 3)
    other = stream.draw(4)
    assert not torch.equal(first["uniforms"], other["uniforms"])


def test_the_streams_of_burn_in_and_candidates_differ(tmp_path: Path) -> None:
    synthesis = make("regression", tmp_path, PLAIN)
    one, other = (synthesis.stream(name, None, keep_images=True).draw(0) for name in ("candidates", "burn_in"))
    for name in ("labels", "uniforms", "images"):
        assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("step", [None, 7])
def test_a_run_cut_off_anywhere_ends_in_the_same_store(store, tmp_path: Path, step: int | None) -> None:
    """At the end of the ratio's training (nothing is saved yet), or while the candidates are drawn."""
    kind, directory = store

    def stop_after_training(values: dict) -> None:
        if step is None and values["stage"] == "density_ratio":
            raise Interruption

    generator = make_generator(kind)
    synthesis = make(kind, tmp_path, generator=generator, log=stop_after_training)
    calls = 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1
        if step is not None and calls > CONFIG.subsample.steps + step:
            raise Interruption

    hook = generator.register_forward_hook(count)
    with pytest.raises(Interruption):
        synthesis.run()
    hook.remove()
    assert not (tmp_path / "manifest.json").exists()
    run(kind, tmp_path)
    assert same(tmp_path, directory)


def test_a_leftover_of_an_interrupted_write_is_not_read(store, tmp_path: Path) -> None:
    kind, directory = store
    (tmp_path / "candidates").mkdir(parents=True)
    (tmp_path / "candidates" / ".chunk-00001.safetensors.tmp").write_bytes(b"\0" * 100)
    run(kind, tmp_path)
    assert same(tmp_path, directory)


def test_the_callers_random_stream_stays_untouched_and_does_not_matter(store, tmp_path: Path) -> None:
    kind, directory = store
    torch.manual_seed(12)
    state = torch.get_rng_state()
    run(kind, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(tmp_path, directory)


def test_asking_for_fewer_samples_gives_some_of_the_same(tmp_path: Path) -> None:
    """Without a filter, whose thresholds depend on how many candidates there are."""
    config = PLAIN.replace(rho=None)
    many, few = (
        run("regression", tmp_path / "many", config),
        run("regression", tmp_path / "few", config.replace(num_samples=9)),
    )
    assert torch.equal(few.images, many.images[:9])


# --- rho from the validation split ------------------------------------------------------------------------------------


def test_the_rho_of_the_best_student_is_taken(tmp_path: Path) -> None:
    errors, seen, logged = iter([3.0, 1.0, 2.0]), [], []

    def validation_error(synthetic: ImageSet) -> float:
        seen.append(synthetic)
        return next(errors)

    config = PLAIN.replace(rho="validation", rho_grid=(0.5, 0.7, 1.0))
    loaded = run("regression", tmp_path, config, validation_error=validation_error, log=logged.append)
    assert read_manifest(tmp_path)["rho"] == 0.7
    assert [len(synthetic) for synthetic in seen] == [31, 31, 31]
    assert torch.equal(seen[1].images, loaded.images) and torch.equal(seen[1].labels, loaded.labels)
    assert not torch.equal(seen[0].images, loaded.images)
    assert [(values["rho"], values["validation_error"]) for values in logged] == [(0.5, 3.0), (0.7, 1.0), (1.0, 2.0)]


def test_rho_from_validation_needs_somebody_who_validates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rho"):
        run("regression", tmp_path, PLAIN.replace(rho="validation"))


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_asking_for_more_than_survives_says_what_to_do(tmp_path: Path) -> None:
    config = PLAIN.replace(rho=0.1, max_candidates=100)
    with pytest.raises(
        ValueError, match=r"100 candidates leave fewer than synthesis\.num_samples = 31: raise synthesis"
    ):
        run("classification", tmp_path, config)
    assert not (tmp_path / "manifest.json").exists()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    run("classification", tmp_path, PLAIN)
    return tmp_path


def refusal(directory: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_store(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_manifest_is_no_finished_store(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    assert "holds no finished synthetic store" in refusal(copy) and str(copy) in refusal(copy)
    assert "holds no finished synthetic store" in refusal(copy / "nowhere")


@pytest.mark.parametrize("length", [0, 4, 300, -1])
def test_a_truncated_shard_is_refused(copy: Path, length: int) -> None:
    path = copy / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert "shard-00001.safetensors is missing or cut off; delete" in refusal(copy)


def test_a_missing_shard_is_refused(copy: Path) -> None:
    (copy / "shard-00001.safetensors").unlink()
    assert "shard-00001.safetensors is missing or cut off; delete" in refusal(copy)


def test_a_changed_shard_is_refused(copy: Path) -> None:
    path = copy / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert "shard-00001.safetensors is not the file that the manifest describes" in refusal(copy)


def test_a_shard_of_another_store_is_refused(copy: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    run("classification", other, PLAIN, seed=1)
    (copy / "shard-00000.safetensors").write_bytes((other / "shard-00000.safetensors").read_bytes())
    assert "is not the file that the manifest describes" in refusal(copy)


def change_manifest(directory: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["shards"].pop(),
        lambda manifest: manifest["shards"].clear(),
        lambda manifest: manifest.update(num_samples=99),
        lambda manifest: (manifest.update(num_samples=12), manifest["shards"].__delitem__(slice(1, None))),
        lambda manifest: manifest.pop("shards"),
        lambda manifest: manifest.update(shards=[1, 2, 3]),
        lambda manifest: manifest["shards"][0].pop("sha256"),
    ],
)
def test_a_manifest_that_lists_other_shards_is_refused_f30(copy: Path, change: Callable[[dict], None]) -> None:
    """One with fewer shards was used without a word."""
    change_manifest(copy, change)
    sentence = refusal(copy)
    assert "manifest.json" in sentence and f"delete {copy} and run the same command again" in sentence


def test_two_shards_that_changed_places_are_refused_f30(copy: Path) -> None:
    first, second = (copy / f"shard-0000{number}.safetensors" for number in range(2))
    one = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(one)
    assert "is not the file that the manifest describes; delete" in refusal(copy)


@pytest.mark.parametrize("damage", ["missing", "half", "list"])
def test_the_way_out_of_a_damaged_manifest_leads_out_f30(tmp_path: Path, damage: str) -> None:
    """`run the synthesis first` was said, which was `done before`."""
    directory = tmp_path / "store"
    first = synthesize(directory)
    path = directory / "manifest.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("[]" if damage == "list" else path.read_text()[:100])
    with pytest.raises(ValueError, match=f"delete {directory} and run the same command again"):
        synthesize(directory)
    shutil.rmtree(directory)
    assert torch.equal(synthesize(directory).images, first.images)


def test_a_damaged_chunk_says_what_to_delete(tmp_path: Path) -> None:
    path = tmp_path / "candidates" / "chunk-00000.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"chunk-00000\.safetensors is missing or cut off; delete"):
        run("classification", tmp_path, PLAIN)


def test_images_of_another_size_than_the_real_ones_are_refused(tmp_path: Path) -> None:
    """A student could not be trained on both."""
    with pytest.raises(ValueError, match="16.*8|8.*16"):
        run("classification", tmp_path, PLAIN, generator=make_generator("classification", size=16))


def test_a_generator_for_another_kind_of_label_is_refused(tmp_path: Path) -> None:
    """Class ids 0 to 2 do lie in a scalar generator's range: they would be drawn as three almost equal scalars."""
    with pytest.raises(ValueError, match="class ids"):
        run("regression", tmp_path / "one", PLAIN, generator=make_generator("classification"))
    with pytest.raises(ValueError, match="class|scalar"):
        run("classification", tmp_path / "other", PLAIN, generator=make_generator("regression"))


def test_labels_that_the_generator_does_not_know_are_refused(tmp_path: Path) -> None:
    real = ImageSet(make_real("classification").images, torch.arange(40) % 4)
    with pytest.raises(ValueError, match="the generator knows 3 classes, the data has 4"):
        run("classification", tmp_path, PLAIN, real=real)


# --- every feature extractor ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "features", "size"),
    [
        ("classification", "autoencoder", 16),
        ("regression", "autoencoder", 8),
        ("classification", "classifier", 16),
    ],
)
def test_every_feature_extractor_makes_a_store_that_can_be_continued(tmp_path, kind, features, size) -> None:
    config = CONFIG.replace(
        num_samples=9,
        rho=None,
        subsample={**SUBSAMPLING, "features": features, "extractor_steps": 1, "steps": 3, "label_bins": 3},
    )
    logged: list[dict] = []
    arguments = {"real": make_real(kind, size), "generator": make_generator(kind, size)}
    run(kind, tmp_path / "whole", config, log=logged.append, **arguments)
    assert {"extractor", "density_ratio"} <= {values["stage"] for values in logged}
    assert "ratios" in rows(tmp_path / "whole")
    # an interrupted run left its ratio: it is read back, not trained again, and gives the same store
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "density_ratio.safetensors").rename(tmp_path / "resumed" / "density_ratio.safetensors")
    logged.clear()
    run(kind, tmp_path / "resumed", config, log=logged.append, **arguments)
    assert logged == []
    assert torch.equal(rows(tmp_path / "resumed")["ratios"], rows(tmp_path / "whole")["ratios"])
    assert torch.equal(rows(tmp_path / "resumed")["images"], rows(tmp_path / "whole")["images"])


@pytest.mark.parametrize("label_input", ["ili", "nli"])
def test_the_ratio_takes_a_scalar_as_the_generator_encodes_it(tmp_path: Path, label_input: str) -> None:
    config = CONFIG.replace(num_samples=9)
    loaded = run("regression", tmp_path, config, generator=make_generator("regression", label_input=label_input))
    assert len(loaded) == 9


def test_a_classifier_for_scalars_is_refused(tmp_path: Path) -> None:
    config = CONFIG.replace(subsample={**SUBSAMPLING, "features": "classifier"})
    with pytest.raises(ValueError, match=r"synthesis\.subsample\.features: classifier needs classes"):
        run("regression", tmp_path, config)


# --- the library way --------------------------------------------------------------------------------------------------


def synthesize(directory: Path, kind: str = "classification", **keywords) -> ImageSet:
    real = keywords.pop("real", None) or make_real(kind)
    teacher = keywords.pop("teacher", None) or make_teacher(real)
    keywords = {"num_samples": 12, "config": PLAIN, **keywords}
    return gankd.synthesize(make_generator(kind), teacher, real=real, directory=directory, **keywords)


def test_a_finished_store_is_read_back_and_not_made_again(tmp_path: Path) -> None:
    first = synthesize(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert torch.equal(synthesize(tmp_path).images, first.images)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert json.loads((tmp_path / "manifest.json").read_text())["inputs"]["seed"] == 0


def test_the_generator_draws_in_evaluation_mode(tmp_path: Path) -> None:
    """A generator that its owner left in training mode would mix the samples of a chunk and move its statistics."""
    generator, real = make_generator("classification"), make_real("classification")
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    expected = run("classification", tmp_path / "eval", PLAIN, generator=generator)
    found = gankd.synthesize(
        generator.train(), make_teacher(real), real=real, num_samples=31, config=PLAIN, directory=tmp_path / "train"
    )
    assert torch.equal(found.images, expected.images)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


def with_another_tap(real: ImageSet) -> Teacher:
    teacher = make_teacher(real)
    teacher.feature_path = "stages.0"
    return teacher


def with_another_normalisation(real: ImageSet) -> Teacher:
    teacher = make_teacher(real)
    teacher.normalize = Normalize(torch.tensor([0.0]), torch.tensor([1.0]))
    return teacher


CHANGES: dict[str, Callable[[], dict]] = {
    "seed": lambda: {"seed": 1},
    "setting": lambda: {"rho": 0.5},
    "number": lambda: {"num_samples": 15},
    "label range": lambda: {"task": task_of(make_real("regression"), label_min=-40, label_max=60)},
    "tap": lambda: {"teacher": with_another_tap(make_real("regression")), "config": CONFIG},
    "normalisation": lambda: {"teacher": with_another_normalisation(make_real("regression"))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_store_made_from_anything_else_is_not_taken_for_this_one(tmp_path: Path, change: str) -> None:
    """Whatever changes the store must change the inputs that it is known by."""
    changed = CHANGES[change]()
    synthesize(tmp_path, "regression", config=changed.get("config", PLAIN))
    with pytest.raises(ValueError, match="was made with other settings"):
        synthesize(tmp_path, "regression", **changed)


def test_a_replaced_label_may_be_trained_on(tmp_path: Path) -> None:
    """The whole way for scalars: labels at the ends of the range must pass the check of the student's training."""
    real = ImageSet(make_real("regression").images, torch.linspace(-1.3, 1.9, 40))
    generator = make_generator("regression")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
    torch.nn.init.constant_(module[1].bias, 100.0)  # a teacher that predicts far beyond the range is clipped to its end
    synthetic = gankd.synthesize(
        generator, module, real=real, num_samples=12, config=PLAIN.replace(rho=None), directory=tmp_path
    )
    assert (synthetic.labels - 1.9).abs().max() < 1e-6
    student = SmallResNet(1, in_channels=1, widths=(4,))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    gankd.distill(student, real=real, synthetic=synthetic, method="supervised", steps=1)
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_a_teacher_of_other_label_statistics_replaces_labels_in_its_own_units(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
    torch.nn.init.zeros_(module[1].weight)
    torch.nn.init.zeros_(module[1].bias)
    module.output_task = Regression(label_min=-30, label_max=60, mean=42, std=1)  # as gankd leaves it on a network
    loaded = synthesize(tmp_path, "regression", teacher=module, config=PLAIN.replace(rho=None))
    torch.testing.assert_close(loaded.labels, torch.full((12,), 42.0))


def test_reading_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing or cut off"):
        read_tensors(tmp_path / "nowhere.safetensors")
