"""An experiment's settings: YAML and overrides in, equal settings out, and one clear sentence for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gankd.data.config import DataConfig
from gankd.experiment.config import ExperimentConfig, apply_override, dump_config, load_config
from gankd.methods import METHODS, method_config
from gankd.synthesis.config import SynthesisConfig
from gankd.training import TrainingConfig
from generators.config import GeneratorConfig
from generators.settings import Settings, nearest

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
MINIMAL = "name: mine\ndata: {name: digits}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    """The sentence with which a configuration is refused."""
    with pytest.raises(ValueError) as caught:
        load_config(write(tmp_path, text), list(overrides))
    return str(caught.value)


def all_settings(base: type[Settings] = Settings) -> list[type[Settings]]:
    """Every settings model of the project."""
    found = [model for child in base.__subclasses__() for model in (child, *all_settings(child))]
    return [model for model in found if model.__module__.split(".")[0] in ("gankd", "generators")]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_smallest_experiment_has_sensible_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.task.kind == "classification"
    assert config.directory == Path("runs/mine")
    arms = {name: (arm.synthetic, arm.method.name) for name, arm in config.student.arms.items()}
    assert list(arms.items()) == [
        ("real", (0, "supervised")),
        ("real_kd", (0, "kd")),
        ("synthetic", (0.5, "supervised")),
        ("synthetic_kd", (0.5, "kd")),
    ]
    assert len(config.student.seeds) == 3
    assert config.synthesis.rho == "paper" and config.synthesis.subsample.enabled


def test_overrides_replace_single_values_and_leave_the_rest(tmp_path: Path) -> None:
    text = MINIMAL + "student: {steps: 7, batch_size: 9}\n"
    config = load_config(
        write(tmp_path, text),
        ["student.steps=8", "synthesis.rho=null", "generator.widths=[4, 8]", "runtime.mixed_precision='no'"],
    )
    assert (config.student.steps, config.student.batch_size) == (8, 9)
    assert config.synthesis.rho is None and config.generator.widths == (4, 8)
    assert config.runtime.mixed_precision == "no"


def test_an_override_may_hold_an_equals_sign_and_create_a_whole_arm(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL), ["title=a = b", "student.arms.one.synthetic=union"])
    assert config.title == "a = b"
    assert list(config.student.arms) == ["one"] and config.student.arms["one"].synthetic == "union"


def test_later_overrides_win(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, MINIMAL), ["seed=1", "seed=2"]).seed == 2


def test_an_override_reaches_into_a_group_that_the_file_leaves_empty(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, MINIMAL + "student:\n"), ["student.steps=3"]).student.steps == 3


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-8, 1e3),
    rho=st.one_of(st.none(), st.just("validation"), st.floats(0.01, 1)),
    share=st.one_of(st.just("union"), st.floats(0, 1)),
    title=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
    method=st.one_of(
        st.just({"name": "supervised"}), st.builds(lambda alpha: {"name": "kd", "alpha": alpha}, st.floats(0, 1))
    ),
)
def test_what_is_written_reads_back_equal(tmp_path_factory, seed, rate, rho, share, title, method) -> None:
    config = ExperimentConfig(
        name="mine",
        title=title,
        seed=seed,
        data={"name": "csv", "root": "some/file.csv", "label_range": (0, 1.5)},
        synthesis={"rho": rho},
        student={"learning_rate": rate, "arms": {"one": {"synthetic": share, "method": method}}},
        teacher={"mean": (0.1, 0.2), "std": (0.3, 0.4)},
    )
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_is_valid_and_round_trips(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_there_are_configurations_to_check() -> None:
    assert len(CONFIGS) >= 2


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "wrong", "right"),
    [
        ("studnet.steps=3", "", "studnet", "student"),
        ("student.step=3", "student", "step", "steps"),
        ("student.model.option=3", "student.model", "option", "options"),
        ("synthesis.subsample.burnin=3", "synthesis.subsample", "burnin", "burn_in"),
        ("student.arms.a.syntetic=1", "student.arms.a", "syntetic", "synthetic"),
        ("student.augmentation.rotate=3", "student.augmentation", "rotate", "rotation"),
        ("data.nmae=digits", "data", "nmae", "name"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest(tmp_path, override, path, wrong, right) -> None:
    sentence = refusal(tmp_path, MINIMAL, override)
    assert (
        sentence == f"{tmp_path}/experiment.yaml: {path and path + ': '}unknown key '{wrong}'; did you mean '{right}'?"
    )


def test_an_unknown_key_of_a_method_is_refused_with_the_path_that_the_user_wrote(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, MINIMAL, "student.arms.a.method={name: kd, temprature: 2}")
    assert sentence.endswith(": student.arms.a.method: unknown key 'temprature'; did you mean 'temperature'?")


def test_a_key_like_nothing_lists_the_valid_ones(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, MINIMAL, "task.zzzz=1")
    assert "unknown key 'zzzz'; valid: head, kind, label_max, label_min, num_bins, sigma, unit" in sentence


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.steps=many", r"student\.steps: .*integer.*got 'many'"),
        ("student.steps=1.5", r"student\.steps: .*integer.*got 1\.5"),
        ("student.steps=0", r"student\.steps: .*greater than 0.*got 0"),
        ("student.seeds=[0, x]", r"student\.seeds\.1: .*integer.*got 'x'"),
        ("synthesis.rho=1.5", r"synthesis\.rho: "),
        ("synthesis.rho=vaildation", r"synthesis\.rho: .*'validation'"),
        ("student.optimizer=adam", r"student\.optimizer: unknown optimizer 'adam'; did you mean 'adamw'\?"),
        ("generator.widths=[4, -1]", r"generator\.widths\.1: .*greater than 0"),
        ("generator.batch_size=3", r"generator: batch_size 3 does not split into pairs"),
        ("generator.augment=colour", r"generator: augment names 'colour'; choose from color"),
        ("student.arms.a.synthetic=2", r"student\.arms\.a\.synthetic: "),
        ("student.arms.a.synthetic=onion", r"student\.arms\.a\.synthetic: .*'union'"),
        ("student.model=small_resnet", r"student\.model: .*got 'small_resnet'"),
        ("teacher.train=false", r"teacher: train is false but model\.checkpoint"),
        ("teacher.mean=[0.5]", r"teacher: give both mean and std"),
        ("student.seeds=[]", r"student: give at least one seed"),
        ("student.arms={}", r"there is nothing to train: give student\.arms or representation\.arms"),
        ("data={}", r"data\.name: .*required"),
        ("student.arms.a.method={name: kd, alpha: 2}", r"student\.arms\.a\.method\.alpha: .*got 2"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(tmp_path: Path, override: str, expected: str) -> None:
    sentence = refusal(tmp_path, MINIMAL, override)
    assert re.match(rf"{re.escape(str(tmp_path))}/experiment\.yaml: {expected}", sentence, re.DOTALL), sentence


@pytest.mark.parametrize("arm", ["kd", "supervised", "int", "real+kd", "rho-0.5"])
def test_the_path_names_the_arm_whatever_it_is_called(tmp_path: Path, arm: str) -> None:
    text = MINIMAL + f"student: {{arms: {{{arm!r}: {{synthetic: -1}}}}}}\n"
    assert f"student.arms.{arm}.synthetic: " in refusal(tmp_path, text)


def test_several_mistakes_take_a_line_each(tmp_path: Path) -> None:
    lines = refusal(tmp_path, MINIMAL, "student.steps=many", "seed=x").splitlines()
    assert len(lines) == 2 and all(line.startswith(f"{tmp_path}/experiment.yaml: ") for line in lines)


def test_an_unknown_method_is_refused_with_the_nearest(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, MINIMAL, "student.arms.a.method={name: supervise}")
    assert "student.arms.a.method: unknown method 'supervise'; did you mean 'supervised'?" in sentence
    with pytest.raises(ValueError, match="unknown method 'supervise'; did you mean 'supervised'"):
        method_config("supervise")
    with pytest.raises(ValueError, match="unknown method 'kdd'; did you mean 'kd'"):
        method_config({"name": "kdd"})


def test_a_method_of_default_settings_is_its_name(tmp_path: Path) -> None:
    text = MINIMAL + yaml.safe_dump({"student": {"arms": {"a": {"method": "kd"}}}})
    assert load_config(write(tmp_path, text)).student.arms["a"].method == method_config("kd")


@pytest.mark.parametrize("method", [["kd"], {"alpha": 0.5}])
def test_a_method_without_a_name_is_refused_with_its_path(tmp_path: Path, method) -> None:
    text = MINIMAL + yaml.safe_dump({"student": {"arms": {"a": {"method": method}}}})
    assert "student.arms.a.method" in refusal(tmp_path, text)


def test_an_unknown_data_source_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert "data.name: unknown data set 'digit'; did you mean 'digits'?" in refusal(
        tmp_path, MINIMAL, "data.name=digit"
    )


def test_an_override_through_a_value_is_refused(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path, MINIMAL, "name.first=x") == "override 'name.first=x': 'name' is a value, not a group of keys."
    )
    sentence = refusal(tmp_path, MINIMAL + "student: {seeds: [1]}\n", "student.seeds.0=x")
    assert "'seeds' is a value, not a group of keys" in sentence


@pytest.mark.parametrize("override", ["student.steps", "=3", "--steps"])
def test_an_override_without_key_and_value_is_refused(tmp_path: Path, override: str) -> None:
    assert "is not of the form dotted.key=value" in refusal(tmp_path, MINIMAL, override)


def test_an_override_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    assert "override 'student.seeds=[1': the value is not YAML" in refusal(tmp_path, MINIMAL, "student.seeds=[1")


def test_overrides_change_nothing_but_the_values_they_name() -> None:
    values = {"a": {"b": 1, "c": 2}, "d": None}
    apply_override(values, "a.b=[1, x]")
    apply_override(values, "d.e.f=")
    assert values == {"a": {"b": [1, "x"], "c": 2}, "d": {"e": {"f": None}}}


@pytest.mark.parametrize("text", ["name: [1", "a: b: c", "\tname: x"])
def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    sentence = refusal(tmp_path, text)
    assert sentence.startswith(f"{tmp_path}/experiment.yaml is not YAML: ") and "\n" not in sentence


@pytest.mark.parametrize(
    "text", ["name: mine\ndata: {name: digits}\nname: other\n", MINIMAL + "student: {steps: 1, steps: 2}\n"]
)
def test_f26_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str) -> None:
    assert re.search(r"is not YAML: the key '\w+' stands twice in one group, again in line 3", refusal(tmp_path, text))


def test_f26_an_override_changes_only_its_own_key_where_an_anchor_is_shared(tmp_path: Path) -> None:
    network = "model: &network {name: small_resnet, options: {widths: [16, 16]}}"
    text = MINIMAL + f"teacher: {{{network}}}\nstudent: {{model: *network}}\n"
    config = load_config(write(tmp_path, text), ["student.model.options.widths=[4,4]"])
    assert config.student.model.options["widths"] != config.teacher.model.options["widths"]
    assert list(config.teacher.model.options["widths"]) == [16, 16]
    merged = MINIMAL + "teacher: &training {steps: 5, batch_size: 8}\nstudent: {<<: *training, steps: 7}\n"
    config = load_config(write(tmp_path, merged), ["student.batch_size=9"])
    assert (config.teacher.steps, config.student.steps) == (5, 7)
    assert (config.teacher.batch_size, config.student.batch_size) == (8, 9)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    """G: the 'utf-8' codec's error named no file."""
    (tmp_path / "experiment.yaml").write_bytes("title: für\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"experiment\.yaml is not a text in UTF-8 .*save it as UTF-8"):
        load_config(tmp_path / "experiment.yaml")


@pytest.mark.parametrize("key", ["seed=-1", "student.seeds=[-1]", f"seed={2**32}", f"representation.seeds=[{2**64}]"])
def test_f24_a_seed_that_no_library_takes_is_refused(tmp_path: Path, key: str) -> None:
    assert key.split("=")[0] in refusal(tmp_path, MINIMAL, key)


def test_g_the_key_of_an_unknown_network_is_named(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, MINIMAL, "student.model.name=smal_resnet")
    assert "student.model.name: unknown network 'smal_resnet'; did you mean 'small_resnet'?" in sentence


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path) -> None:
    """G: it ended in an OSError."""
    assert "name: " in refusal(tmp_path, MINIMAL, f"name={'x' * 300}")
    assert "student.arms" in refusal(tmp_path, MINIMAL, f"student.arms.{'x' * 300}.synthetic=0")


@pytest.mark.parametrize("text", ["", "- name", "name", "3"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    assert "must hold keys and values" in refusal(tmp_path, text)


def test_python_objects_in_a_yaml_file_are_not_built(tmp_path: Path) -> None:
    assert "is not YAML" in refusal(tmp_path, "name: !!python/object/apply:os.getcwd []\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no configuration .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_config(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere", "/elsewhere"])
def test_a_name_that_leaves_the_output_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A run removes and replaces stages in its directory: that must be a directory of its own."""
    assert "name" in refusal(tmp_path, f"name: {name!r}\ndata: {{name: digits}}\n")


@pytest.mark.parametrize("arm", ["", "..", "a/b"])
def test_an_arm_that_is_no_folder_name_is_refused(tmp_path: Path, arm: str) -> None:
    assert "student" in refusal(tmp_path, MINIMAL + f"student: {{arms: {{{arm!r}: {{}}}}}}\n")


def test_a_seed_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """It would be trained once and counted twice, which makes the spread over the seeds too small."""
    assert "student" in refusal(tmp_path, MINIMAL, "student.seeds=[0, 0]")


# --- the settings models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", all_settings(), ids=lambda model: model.__name__)
def test_every_setting_is_described(model: type[Settings]) -> None:
    undescribed = [name for name, field in model.model_fields.items() if not field.description]
    assert undescribed == []
    assert model.__doc__


@pytest.mark.parametrize("model", all_settings(), ids=lambda model: model.__name__)
def test_r4_a_tooltip_stands_alone(model: type[Settings]) -> None:
    """A sentence or a phrase of three words and more, which needs nothing that stands before it."""
    for name, field in model.model_fields.items():
        text = field.description or ""
        assert text[:1].isupper() and text.endswith(".") and len(text.split()) > 2, (name, text)
        assert not text.startswith("Of "), (name, text)


def test_the_schema_for_editors_describes_every_field_of_every_group() -> None:
    schema = ExperimentConfig.model_json_schema()
    groups = {"ExperimentConfig": schema, **schema["$defs"]}
    assert {"StudentConfig", "KDConfig", "SubsamplingConfig", "AugmentationConfig"} <= set(groups)
    undescribed = [
        f"{group}.{field}"
        for group, value in groups.items()
        for field, content in value["properties"].items()
        if not content.get("description")
    ]
    assert undescribed == []


def test_settings_are_frozen(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    for group, field in ((config, "seed"), (config.student, "steps"), (config.synthesis.subsample, "enabled")):
        with pytest.raises(pydantic.ValidationError):
            setattr(group, field, 1)


def test_two_experiments_share_no_mutable_default(tmp_path: Path) -> None:
    first, second = (load_config(write(tmp_path, MINIMAL)) for _ in range(2))
    first.student.arms.clear()
    first.student.model.options["widths"] = [1]
    assert len(second.student.arms) == 4 and second.student.model.options == {"widths": [8, 16]}
    assert load_config(write(tmp_path, MINIMAL)) == second


def test_replacing_settings_validates_like_reading_them() -> None:
    config = SynthesisConfig(rho=0.5).replace(num_samples=7, subsample={"enabled": False})
    assert (config.num_samples, config.rho, config.subsample.enabled) == (7, 0.5, False)
    assert TrainingConfig().replace() == TrainingConfig()
    with pytest.raises(ValueError, match="unknown key 'step'; did you mean 'steps'"):
        TrainingConfig().replace(step=3)
    with pytest.raises(ValueError, match="greater than 0"):
        GeneratorConfig().replace(steps=0)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: TrainingConfig().replace(step=3),
        lambda: GeneratorConfig().replace(steps=0),
        lambda: method_config({"name": "kd", "temperature": 0}),
    ],
)
def test_a_mistake_in_the_library_way_is_one_sentence_too(mistake) -> None:
    with pytest.raises(ValueError) as caught:
        mistake()
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


def test_a_method_is_given_by_name_by_dictionary_or_as_settings() -> None:
    for name, method in METHODS.items():
        if name == "combined":  # a list of others, without a default
            continue
        assert method_config(name) == method_config({"name": name}) == method.Config()
        assert method_config(method.Config()) == method.Config()
    assert method_config({"name": "kd", "temperature": 2}).temperature == 2
    with pytest.raises(ValueError, match="temperature"):
        method_config({"name": "kd", "temperature": 0})


def test_every_data_setting_is_optional_but_the_source() -> None:
    assert [name for name, field in DataConfig.model_fields.items() if field.is_required()] == ["name"]


def test_the_nearest_choice_or_all_of_them() -> None:
    assert nearest("tempratur", ["alpha", "temperature"]) == "; did you mean 'temperature'?"
    assert nearest("zzz", ["beta", "alpha"]) == "; valid: alpha, beta"
