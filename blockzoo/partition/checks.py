"""What a known family's checkpoint should hold: names and shapes that follow from its config."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition import spec as specs
from blockzoo.partition.families import family_of_config
from blockzoo.partition.family import Family
from blockzoo.partition.names import canonical_names
from blockzoo.tensors import TensorInfo

#: config keys under which quantised checkpoints say how their weights are packed
QUANTISED = ("quantization_config", "compression_config")
#: dtypes that transformers casts to the one it computes in
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


def check_shapes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a checkpoint whose config and tensors disagree.

    Tensors that are missing or unknown are not looked at, nor are those of unknown families and
    of quantised checkpoints, whose weights are packed.

    Parameters
    ----------
    config : mapping
        Its config.json.
    tensors : mapping of str to TensorInfo
        By the name in the file.

    Raises
    ------
    SourceError
        Naming the first tensor that disagrees, what the config says and what was found.
    """
    family = family_of_config(config)
    if family is None or any(config.get(key) for key in QUANTISED):
        return
    values = specs.complete(family, config)
    facts = specs.facts(family, values)
    shapes = _Shapes(family, facts)
    for name, canonical in canonical_names(family, tensors).items():
        expected = shapes.of(canonical)
        found = tensors[name].shape
        if expected is not None and found != expected:
            raise SourceError(
                f"config.json and the tensors disagree: {name} should be {list(expected)} "
                f"({_why(family, canonical, facts)}), but is {list(found)}",
                hint="the config.json may belong to another model; restore the original one",
            )


def expected_tensors(
    family: Family, values: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all parameters that a checkpoint of a completed config should have.

    Parameters
    ----------
    family : Family
    values : mapping
        Of `spec.complete`.

    Yields
    ------
    name : str
        In canonical form. The LM head is among them whether it is tied or not.
    shape : tuple of int
    """
    facts = specs.facts(family, values)
    shapes = _Shapes(family, facts)
    for name in family.outer_shapes:
        if holds(family, name, facts):
            yield name, shapes.evaluated(family.outer_shapes[name])
    local = [name for name in family.shapes if holds(family, name, facts)]
    for index in range(specs.layer_count(values)):
        for name in local:
            shape = shapes.evaluated(family.shapes[name])
            experts = range(facts[family.experts]) if "*" in name else (0,)
            for expert in experts:
                full = f"{family.root}{family.layers}{index}.{name}"
                yield full.replace("*", str(expert)), shape


def holds(family: Family, name: str, facts: Mapping[str, Any]) -> bool:
    """Whether a config has a parameter at all: biases, norms and the like may be off."""
    return all(
        facts[key] == wanted
        for end, conditions in family.only_if.items()
        if name.endswith(end)
        for key, wanted in conditions.items()
    )


class _Shapes:
    """The expected shape of a tensor by its canonical name, each expression evaluated once."""

    def __init__(self, family: Family, facts: Mapping[str, Any]) -> None:
        self._family = family
        self._facts = facts
        self._known: dict[tuple[str, ...], tuple[int, ...]] = {}

    def of(self, name: str) -> tuple[int, ...] | None:
        expression = _expression(self._family, name)
        return None if expression is None else self.evaluated(expression)

    def evaluated(self, expression: tuple[str, ...]) -> tuple[int, ...]:
        if expression not in self._known:
            self._known[expression] = tuple(_value(one, self._facts) for one in expression)
        return self._known[expression]


def _expression(family: Family, name: str) -> tuple[str, ...] | None:
    if name in family.outer_shapes:
        return family.outer_shapes[name]
    start = family.root + family.layers
    if not name.startswith(start):
        return None
    local = name.removeprefix(start).partition(".")[2]
    if family.experts:
        local = ".".join("*" if part.isdigit() else part for part in local.split("."))
    return family.shapes.get(local)


def _value(expression: str, facts: Mapping[str, Any]) -> int:
    """A sum of products of integers and config values."""
    return sum(
        math.prod(int(factor) if factor.isdigit() else facts[factor] for factor in term.split("*"))
        for term in expression.split("+")
    )


def _why(family: Family, name: str, facts: Mapping[str, Any]) -> str:
    expression = _expression(family, name) or ()
    keys = [key for one in expression for key in one.replace("+", "*").split("*")]
    given = {key: facts[key] for key in keys if not key.isdigit()}
    return ", ".join(f"{key} {value}" for key, value in given.items())
