"""What helps the generator to train: maps for discriminators, teachers that guide it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from gankd.experiment.experiment import without_downloads
from gankd.fingerprints import file_hash
from gankd.guidance.config import FrozenNetworkConfig
from gankd.guidance.guide import TeacherGuide
from gankd.guidance.maps import NetworkMaps
from gankd.models.inputs import Normalize, normalization_for
from gankd.models.teacher import Teacher
from gankd.pipeline.stage import Stage, task_inputs, with_key

Helper = FrozenNetworkConfig | str


def helpers_of(run) -> Iterator[tuple[str, Helper]]:
    """The keys of the configuration that name a network that helps, and what they name."""
    config = run.config.generator
    if config.features is not None:
        yield "generator.features.network", config.features.network
    if config.guidance is not None:
        yield from (("generator.guidance.teachers", each) for each in config.guidance.teachers)


def helping_stages(run) -> dict[str, Stage]:
    """The stages whose networks help, by the keys that ask for them."""
    stages = {"teacher": run.teacher, "backbone": run.judge}
    return {key: stages[helper] for key, helper in helpers_of(run) if isinstance(helper, str)}


def trained_network(run, helper: FrozenNetworkConfig) -> Teacher:
    """A network by its settings, with the weights that they name."""
    network = helper.build(helper.num_outputs or run.task.num_outputs, run.image_shape[0])
    if helper.mean is None:
        normalize = normalization_for(network, run.normalize, helper.name)
    else:
        normalize = Normalize(torch.tensor(helper.mean), torch.tensor(helper.std))
    return Teacher(network, normalize, device=run.accelerator.device, image_size=helper.image_size)


def ready(run, helper: Helper) -> Teacher:
    """A network that helps, trained."""
    if isinstance(helper, str):
        return {"teacher": run.teacher, "backbone": run.judge}[helper].result
    return trained_network(run, helper)


def stand_in_for(run, helper: Helper) -> Teacher:
    """The same before anything is made or downloaded: a network that is still to be trained is there without its weights."""
    if isinstance(helper, FrozenNetworkConfig):
        return trained_network(run, helper.model_copy(update={"options": without_downloads(helper.options)}))
    model, task = (run.config.teacher.model, run.teacher_task) if helper == "teacher" else (run.judge.model, None)
    return Teacher(run.network(model, task), run.normalize, device=run.accelerator.device, task=task)


def help_of(run, network_of: Callable[[Any, Helper], Teacher] = ready) -> dict[str, Any]:
    """What `generators.train` is given of those that help.
    Raises ValueError: a network that cannot help, with the key that names it."""
    features, guidance = run.config.generator.features, run.config.generator.guidance

    def maps() -> NetworkMaps:
        return NetworkMaps(network_of(run, features.network), run.image_shape, features.taps)

    def guide() -> TeacherGuide:
        teachers = [network_of(run, each) for each in guidance.teachers]
        real = run.data.validation if guidance.until_real and network_of is ready else None
        settings = {"temperature": guidance.temperature, "statistics": guidance.statistics}
        return TeacherGuide(teachers, run.task, real, **settings)

    given = {} if features is None else {"features": with_key("generator.features", maps)}
    return given if guidance is None else {**given, "guide": with_key("generator.guidance", guide)}


def check_help(run) -> None:
    """Let every network that helps be asked once, so that one that cannot help stops here."""
    help_of(run, stand_in_for)


def help_inputs(run) -> dict[str, Any]:
    """What the help depends on besides the settings and the stages, as JSON."""
    config = run.config.generator
    files = [helper.checkpoint for _, helper in helpers_of(run) if isinstance(helper, FrozenNetworkConfig)]
    inputs: dict[str, Any] = {"helpers": [file_hash(path) for path in files]} if files else {}
    if config.guidance is not None:
        inputs |= {"task": task_inputs(run.task), "clear": run.content(run.data.validation)}
    return inputs
