"""A function as a method: a loss of what student and teacher made of a batch.

@gankd.method("margin_kd")
def margin_kd(outputs, *, margin: Positive = 1.0):
    return (outputs.teacher - outputs.student - margin).relu().mean()

student = gankd.distill(student, teacher, real=train, method={"name": "margin_kd", "margin": 2})
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import create_model
from torch import Tensor

from gankd.methods.base import METHODS, Method, MethodConfig, configured
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import FeatureTermConfig, Term
from generators.registry import options_of

Loss = Callable[..., Tensor]


class FunctionConfig(FeatureTermConfig):
    """The base of functions' settings."""

    @property
    def uses_teacher(self) -> bool:
        return self.method.reads_teacher


class FunctionTerm(Term, register=False):
    """task loss + weight * function(outputs, **settings), its features those of `student_taps` and `teacher_taps`."""

    needs_teacher = False
    function: ClassVar[Loss]
    reads_teacher: ClassVar[bool] = True
    """Whether the function reads the teacher's outputs or features where there are any."""

    def __init__(self, config: FeatureTermConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps = list(config.student_taps or [])
        self.teacher_taps = list(config.teacher_taps or [])
        self.reads_teacher_outputs = setup.teacher is not None
        own = type(config).model_fields.keys() - FunctionConfig.model_fields.keys() - {"name"}
        self.settings = {key: getattr(config, key) for key in own}

    def forward(self, outputs: Outputs) -> Tensor:
        return type(self).function(outputs, **self.settings)


def method(name: str, *, needs_teacher: bool = True) -> Callable[[Loss], Loss]:
    """A decorator that makes a function a method called `name`, in the library and in a YAML.

    The function takes `Outputs` and returns a scalar; its keyword-only parameters are the method's settings, beside
    `weight`, `task_weight`, `student_taps` and `teacher_taps`. Its first paragraph is their help.

    needs_teacher: whether it reads `outputs.teacher` or `outputs.teacher_features`.
    Raises ValueError: another method is called so.
    """

    def register(function: Loss) -> Loss:
        made = method_of(function, name)
        made.needs_teacher = made.reads_teacher = needs_teacher
        METHODS.register(name)(made)
        return function

    return register


def method_of(function: Loss, name: str) -> type[FunctionTerm]:
    """The method that a function is, with a teacher or without; configurations do not know it."""
    options = options_of(function)
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    fields |= {key: (field.annotation, field) for key, field in options.model_fields.items()}
    config = create_model(f"{name}Config", __base__=FunctionConfig, __module__=function.__module__, **fields)
    config.__doc__ = options.__doc__
    members = {
        "Config": config,
        "function": staticmethod(function),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": getattr(function, "__qualname__", name),
    }
    metaclass: Any = type(FunctionTerm)
    return metaclass(name, (FunctionTerm,), members, register=False)


def method_config(method: Any) -> MethodConfig:
    """A method's settings from its name, from a dictionary with `name`, from settings, from a `Method`'s class, or from
    a function of `Outputs`. Raises ValueError: an unknown method, a setting that it does not have or cannot take."""
    if isinstance(method, type) and issubclass(method, Method):
        return method.Config()
    if callable(method):
        return method_of(method, getattr(method, "__name__", type(method).__name__)).Config()
    return configured(method)
