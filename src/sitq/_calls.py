"""What a queue knows of the functions it is given: name, parameters and options, looked up once per function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sitq.exceptions import ValidationError
from sitq.functions import TaskSettings, function_name, settings_of
from sitq.options import Plan

__all__ = ["Calls", "Known"]


@dataclass(frozen=True, slots=True)
class Known:
    """A function as it was when it was looked up."""

    name: str
    signature: inspect.Signature | None
    positional: range  # how many positional arguments alone make a valid call
    settings: TaskSettings
    plan: Plan

    def has_parameter(self, name: str) -> bool:
        """Say whether the function itself takes a parameter called `name`."""
        return self.signature is not None and name in self.signature.parameters

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `ValidationError` for a call that does not fit the function's signature."""
        if self.signature is not None and (kwargs or len(args) not in self.positional):
            try:
                self.signature.bind(*args, **kwargs)
            except TypeError as error:
                raise ValidationError(f"{self.name}{self.signature} cannot be called like this: {error}") from None


class Calls:
    """Looks functions up, once for each, and finds their options."""

    def __init__(self) -> None:
        self._cache: WeakKeyDictionary[Callable[..., Any], Known] = WeakKeyDictionary()

    def plan(self, function: Callable[..., Any], values: Mapping[str, Any]) -> Plan:
        """Return the plan of `@task`'s options, with `values` (validated) having the last word."""
        known = self.known(function)
        if not values:
            return known.plan
        defaults = known.settings.options
        if "eta" in values or "delay" in values:
            defaults = {name: value for name, value in defaults.items() if name not in ("eta", "delay")}
        return _plan(function, {**defaults, **values})

    def known(self, function: Callable[..., Any]) -> Known:
        """Return what is known of a function. Raises `ValidationError` for what is none."""
        try:
            known = self._cache.get(function)
        except TypeError:  # cannot be hashed or weakly referenced: look it up each time
            return _look_up(function)
        if known is None or known.settings is not settings_of(function):
            known = _look_up(function)
            try:
                self._cache[function] = known
            except TypeError:
                return known
        return known


def _look_up(function: Callable[..., Any]) -> Known:
    if not callable(function):
        raise ValidationError(f"a task is a function to call later, not {function!r}: pass f, not f()")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        signature = None
    settings = settings_of(function)
    positional = _positional(signature) if signature else range(0)
    return Known(function_name(function), signature, positional, settings, _plan(function, settings.options))


def _plan(function: Callable[..., Any], values: Mapping[str, Any]) -> Plan:
    if values.get("executor") == "thread" and inspect.iscoroutinefunction(function):
        raise ValidationError(
            f'{function_name(function)} is async and runs on the event loop: executor="thread" is for plain functions; '
            'leave it out, or use "process"'
        )
    return Plan.of(values)


def _positional(signature: inspect.Signature) -> range:
    least = most = 0
    for parameter in signature.parameters.values():
        required = parameter.default is parameter.empty
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += required
        elif parameter.kind == parameter.VAR_POSITIONAL:
            most = 2**31
        elif parameter.kind == parameter.KEYWORD_ONLY and required:
            return range(0)
    return range(least, most + 1)
