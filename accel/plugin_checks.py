"""What a plugin can get wrong, each as one line for a message: its hooks, what it registers, and errors of its own.

Pure checks. The line says what is wrong and what would be right; who the plugin is stands in the `PluginError` that
`plugin_manager` makes of it. Layer: below `plugin_manager`.
"""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import pluggy

from accel.backend import Accelerator
from accel.options import Option, nearest

#: Names are written in lists with commas, and before a dot as in ``-o kvm.hold=unsafe``.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: Names of plugins are written in lists with commas, and behind ``-p no:``.
_PLUGIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
#: Longest that the words of a foreign error, or a summary, are in a message.
_LONGEST = 300


# hooks


def contract_problem(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """Return what is wrong with the hooks of a plugin that is not registered yet, or None."""
    known = sorted(name for name in vars(manager.hook) if not name.startswith("_"))
    problems = []
    for name, implementation in implementations(manager, plugin):
        hook = implementation.opts["specname"] or name
        if hook not in known:
            if not implementation.optionalhook:
                problems.append(f"there is no hook '{hook}'; {nearest(hook, known)}")
            continue
        given = getattr(manager.hook, hook).spec.argnames
        unknown = [one for one in implementation.argnames if one not in given]
        if unknown:
            names = " and ".join(f"'{one}'" for one in unknown)
            problems.append(f"{hook} takes {names}, which the hook does not give; it gives: {', '.join(given)}")
        elif implementation.wrapper or implementation.hookwrapper:
            problems.append(f"{hook} cannot be a wrapper; each plugin's is called by itself")
        elif lazy := _lazy_problem(hook, implementation.function):
            problems.append(f"{hook} {lazy}")
    return "; ".join(problems) or None


def _lazy_problem(hook: str, function: Any) -> str | None:
    """Return why calling a function would do nothing, or None. Listeners may come out of a generator."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return "is async, and nobody would await it; write def"
    if inspect.isgeneratorfunction(function) and hook != "accel_memory_listeners":
        return "has a yield, so calling it does nothing; leave that out"
    return None


def implementations(manager: pluggy.PluginManager, plugin: object) -> Iterable[tuple[str, pluggy.HookImpl]]:
    """Yield the hook implementations of a plugin, as pluggy finds them."""
    for name in dir(plugin):
        options: Any = manager.parse_hookimpl_opts(plugin, name)
        if options is not None:
            options = {
                "wrapper": False,
                "hookwrapper": False,
                "optionalhook": False,
                "tryfirst": False,
                "trylast": False,
                "specname": None,
                **options,
            }
            yield name, pluggy.HookImpl(plugin, "", getattr(plugin, name), options)


def missing_hooks(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """Return why a plugin with no hook has none, or None if it has one."""
    if any(True for _ in implementations(manager, plugin)):
        return None
    unmarked = [name for name in vars(manager.hook) if callable(getattr(plugin, name, None))]
    if unmarked:
        return f"{unmarked[0]} is not marked as a hook; put @accel.hookimpl before it"
    return "implements no hook; is this the right module? Hooks are functions with @accel.hookimpl before them"


def plugin_name_problem(name: str, builtin: str) -> str | None:
    """Return why a plugin cannot be called so, or None: it could not be switched off by a name that lists part."""
    if name == builtin:
        return f"the name '{builtin}' stands for what is built in; rename it"
    if not _PLUGIN_NAME.fullmatch(name):
        return "a plugin's name is made of letters, digits, '-', '_' and '.', at most 64; rename it"
    return None


# what is registered


def registered_problem(hook: str, thing: object) -> str | None:
    """Return what is wrong with what a plugin registers through `hook`, or None."""
    if hook == "accel_register_accelerators":
        return accelerator_problem(thing)
    from accel.devices.base import DeviceType
    from accel.loaders.image import Loader

    kind = DeviceType if hook == "accel_register_devices" else Loader
    if not isinstance(thing, kind):
        return f"{shown(thing)} is no {kind.__name__}"
    problem = _name_problem(thing) or _summary_problem(thing)
    return problem or (_options_problem(thing.options) if isinstance(thing, DeviceType) else None)


def accelerator_problem(thing: object) -> str | None:
    """Return what is wrong with an accelerator, or None. It is not probed."""
    if isinstance(thing, type) and issubclass(thing, Accelerator):
        return f"{thing.__name__} is a class; register an accelerator: {thing.__name__}()"
    if not isinstance(thing, Accelerator):
        return f"{shown(thing)} is no accelerator; derive its class from accel.Accelerator"
    executes = getattr(thing, "executes", None)
    if problem := _name_problem(thing):
        return problem
    if not isinstance(executes, Set) or not all(isinstance(one, str) for one in executes):
        return f"{shown(thing)}.executes is {shown(executes)}; it must be a frozenset, as frozenset({{'program'}})"
    if problem := _summary_problem(thing):
        return problem
    if type(thing.priority) is not int:
        return f"{shown(thing)}.priority is {shown(thing.priority)}; it must be a whole number"
    return _options_problem(thing.options)


def _name_problem(thing: object) -> str | None:
    name = getattr(thing, "name", None)
    if isinstance(name, str) and _NAME.fullmatch(name):
        return None
    return f"{shown(thing)}.name is {shown(name)}; it must be letters, digits, '-' and '_', at most 64"


def _summary_problem(thing: Any) -> str | None:
    summary = thing.summary
    if isinstance(summary, str) and summary.isprintable() and len(summary) <= _LONGEST:
        return None
    return f"{shown(thing)}.summary is {shown(summary)}; it must be a line of text, at most {_LONGEST} characters"


def _options_problem(options: object) -> str | None:
    if not isinstance(options, Sequence) or isinstance(options, str):
        return f"its options are {shown(options)}; they must be a tuple of accel.Option"
    for one in options:
        if not isinstance(one, Option):
            return f"its options hold {shown(one)}, which is no accel.Option"
    names = [one.name for one in options]
    twice = {one for one in names if names.count(one) > 1}
    return f"it declares option '{min(twice)}' twice" if twice else None


def availability_problem(answer: object) -> str | None:
    """Return what is wrong with the answer of a probe, or None."""
    from accel.backend import Availability

    if not isinstance(answer, Availability):
        return f"its probe returned {shown(answer)}, not an accel.Availability"
    # Nothing has checked what the plugin put there.
    ok, reason, capabilities, details = map(_unchecked, (answer.ok, answer.reason, answer.capabilities, answer.details))
    if type(ok) is not bool or not isinstance(reason, str):
        return f"its probe returned ok={shown(ok)} and reason={shown(reason)}; they are a bool and text"
    if not isinstance(capabilities, Set) or not all(isinstance(one, str) for one in capabilities):
        return f"its probe returned capabilities={shown(capabilities)}; they are a set of accel.Capability"
    if not isinstance(details, Mapping) or not all(isinstance(one, str) for one in [*details, *details.values()]):
        return f"its probe returned details={shown(details)}; they are a dict of texts"
    return None


def _unchecked(thing: object) -> object:
    return thing


def shown(thing: object) -> str:
    """Return a thing of a plugin in a few words: a value as it is written, anything else by its class."""
    if thing is None or isinstance(thing, (str, int, float, bool, tuple, list, set, frozenset, dict)):
        return _cut(repr(thing), 60)
    return f"class {thing.__name__}" if isinstance(thing, type) else f"an object of class {type(thing).__name__}"


# errors


def described(error: BaseException, module: str = "", path: str = "") -> str:
    """Return the error of a plugin as one line: its class, what it says, and where in the plugin it came from.

    Args:
        error: Any exception; not even its text can be relied on.
        module: Name of the plugin's module, or of any below the same package.
        path: The plugin's file, if the message names it already: then only the line is told.
    """
    kind = type(error).__name__
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{kind}: {error.msg} ({_place(error.filename, error.lineno, path)})"
    try:
        words = one_line(str(error))
    except BaseException as second:  # noqa: BLE001 - of a plugin, too
        words = f"its text cannot be had ({type(second).__name__})"
    place = place_of(error, module)
    return (f"{kind}: {words}" if words else kind) + (f" ({_place(*place, path)})" if place else "")


def one_line(text: str, most: int = _LONGEST) -> str:
    """Return a plugin's words as one line, cut where they go on and on."""
    return _cut(" ".join(text.split()), most)


def mark_as_guests(error: BaseException) -> None:
    """Note that guest code which is Python of the embedding program raised `error`: nobody is to blame a plugin.

    For accelerators that run such guests. It is raised to whoever waits as it is.
    """
    error.__dict__["accel_guest"] = True


def is_guests(error: BaseException) -> bool:
    """Return whether `mark_as_guests` was called with this error."""
    return "accel_guest" in error.__dict__


def place_of(error: BaseException, module: str) -> tuple[str, int | None] | None:
    """Return the file and line of `module`'s package that `error` came from, the innermost; None if it did not."""
    package = module.partition(".")[0]
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if package and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
            found = frame.f_code.co_filename, line
    return found


def _place(filename: str, line: int | None, path: str) -> str:
    return f"line {line}" if path and os.path.realpath(filename) == os.path.realpath(path) else f"{filename}:{line}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
