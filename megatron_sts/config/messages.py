"""What plain values get wrong about the keys and types of a recipe, in the names of the YAML file."""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import isclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from megatron_sts.config.overrides import Override
from megatron_sts.config.suggestion import suggestion

Location = tuple[int | str, ...]
_SHOWN_CHARACTERS = 80
# The key by which an override tells the entries of a list apart.
_LABELS = {"stages": "name", "skip": "tokens"}

# pydantic's error types that need plainer words than its own message has.
_ALLOWED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "model_type": "a block of keys",
    "path_type": "a path",
    "string_type": "text (quote it if it is)",
    "too_short": "a list with at least one entry",
    "tuple_type": "a list",
}


@dataclass(frozen=True)
class Sources:
    """Where the values come from, to say in which file or override a wrong one stands."""

    file: str
    architecture: str | None = None
    overrides: tuple[Override, ...] = ()

    def of(self, field: str) -> str:
        """The source of a dotted field: the last override at or above it, else the file."""
        for override in reversed(self.overrides):
            if _is_under(field, override.field):
                return f"override '{override.text}'"
        if self.architecture is not None and _is_under(field, "model.architecture"):
            return self.architecture
        return self.file


def key_problems(values: Mapping[str, Any], model: type[BaseModel], sources: Sources) -> list[str]:
    """Every key that the model does not have, with the nearest one that it has, and all of them."""
    return list(_key_problems(values, values, model, sources, ()))


def _key_problems(
    top: Mapping[str, Any], values: Any, model: type[BaseModel], sources: Sources, location: Location
) -> Iterator[str]:
    if isinstance(values, list):
        for index, entry in enumerate(values):
            yield from _key_problems(top, entry, model, sources, (*location, index))
        return
    if not isinstance(values, Mapping):
        return
    fields = {_key(name, field): field for name, field in model.model_fields.items()}
    for key, value in values.items():
        if key not in fields:
            field = dotted((*location, key), top)
            yield (
                f"unknown key '{field}' in {sources.of(field)}{suggestion(str(key), fields)} "
                f"valid keys here: {', '.join(fields)}"
            )
        elif (nested := _nested_model(fields[key].annotation)) is not None:
            yield from _key_problems(top, value, nested, sources, (*location, key))


def type_problems(
    error: ValidationError, values: Mapping[str, Any], model: type[BaseModel], sources: Sources
) -> list[str]:
    """pydantic's findings, one message each; those about unknown keys are left to `key_problems`."""
    # A list whose entries are wrong also counts as too short; only one that is short by itself is reported.
    return [
        _type_problem(detail, values, model, sources)
        for detail in error.errors(include_url=False)
        if detail["type"] != "extra_forbidden" and not (detail["type"] == "too_short" and detail["input"])
    ]


def _type_problem(detail: ErrorDetails, values: Mapping[str, Any], model: type[BaseModel], sources: Sources) -> str:
    field = dotted(detail["loc"], values)
    source = sources.of(field)
    if detail["type"] == "missing":
        described = _field_at(detail["loc"], model)
        meaning = f": {described.description}" if described is not None and described.description else ""
        return f"'{field}' is missing in {source}; add it{meaning}"
    found = shortened(detail["input"])
    if not field:
        return f"{source} holds {found}; it should be a mapping of keys to values"
    if detail["type"] == "string_pattern_mismatch":
        allowed = f"made of {detail['ctx']['pattern'].strip('^$')}"
    else:
        allowed = _ALLOWED.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")
    return f"'{field}' in {source} is {found}; it should be {allowed}"


def dotted(location: Location, values: Mapping[str, Any]) -> str:
    """A location in the names of an override: `stages.tune.skip.alpha`; a nameless stage by number."""
    name = ""
    here: Any = values
    for part in location:
        if isinstance(part, int) and isinstance(here, Mapping):
            # A block that stands for a list of one: `skip` of a stage.
            continue
        here = _entry(here, part)
        if isinstance(part, int):
            label = here.get(_LABELS.get(name.rpartition(".")[2], "")) if isinstance(here, Mapping) else None
            name += f".{label}" if isinstance(label, str) and label else f"[{part}]"
        else:
            name += f".{part}" if name else str(part)
    return name


def shortened(value: Any) -> str:
    """A value as a message shows it: null and true as YAML writes them."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _entry(values: Any, part: int | str) -> Any:
    if isinstance(values, Mapping):
        return values.get(part)
    if isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
        return values[part]
    return None


def _is_under(field: str, parent: str) -> bool:
    return field == parent or field.startswith((f"{parent}.", f"{parent}["))


def _key(name: str, field: FieldInfo) -> str:
    return field.serialization_alias or name


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None` or `tuple[Model, ...]`; None for a plain field."""
    if isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return next(filter(None, map(_nested_model, get_args(annotation))), None)
    return None


def _field_at(location: Location, model: type[BaseModel]) -> FieldInfo | None:
    found: FieldInfo | None = None
    here: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        if here is None:
            return None
        found = next((field for name, field in here.model_fields.items() if _key(name, field) == part), None)
        here = _nested_model(found.annotation) if found is not None else None
    return found
