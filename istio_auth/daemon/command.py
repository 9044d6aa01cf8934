"""The command line of a daemon: run it, or show its configuration. Its flags are made from its schema.

    <program> [flags]                run
    <program> run [flags]            the same
    <program> check-config [flags]   what holds, and where each setting came from

Flags may stand before or after the command's name. `--help` shows every setting with its default here.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Generic, NoReturn, Protocol, TypeVar

import typer

from istio_auth.daemon import signals, values
from istio_auth.daemon.folders import Folders
from istio_auth.daemon.lifecycle import Daemon, Exit, run
from istio_auth.daemon.logging import Format, Level, configure
from istio_auth.daemon.settings import CONFIG, Effective, Leaf, Loaded, Setting, configured, leaves
from istio_auth.errors import ConfigurationError, IstioAuthError

_OUTPUT: Final = "output"
_VERSION: Final = "version"
_AS_IT_IS: Final = "\b\n"  # a paragraph that begins so is not wrapped by typer
_DISTRIBUTION: Final = "istio-auth"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What a daemon writes to stderr."""

    level: Annotated[Level, Setting("the least serious lines to write: debug, info, warning or error")] = Level.INFO
    format: Annotated[Format, Setting("text for people, or json: one object a line")] = Format.TEXT


class DaemonConfig(Protocol):
    """What the schema of every daemon has."""

    @property
    def log(self) -> LogSettings:
        """Its logs."""
        ...


Config = TypeVar("Config", bound=DaemonConfig)


@dataclass(frozen=True, slots=True)
class Program(Generic[Config]):
    """A daemon, for its command line.

    Args:
        name: what it is called.
        about: what it is, for `--help`.
        schema: its settings.
        prefix: what its environment variables start with.
        file_name: its configuration file, in the folder for configuration.
        serve: its main coroutine.
        check: further checks for `check-config`, which the schema can not make; raises IstioAuthError.
        commands: the program's other commands by name, as functions for typer.
    """

    name: str
    about: str
    schema: type[Config]
    prefix: str
    file_name: str
    serve: Callable[[Config, Daemon], Awaitable[None]]
    check: Callable[[Config], None]
    commands: Mapping[str, Callable[..., None]] = field(default_factory=dict)


def run_command_line(program: Program[Config], arguments: Sequence[str] | None = None) -> NoReturn:
    """Do what the arguments say, and end the process.

    Args:
        program: the daemon.
        arguments: the words after the program's name; None takes those of this process.
    """
    try:
        _app(program)(arguments, prog_name=program.name)
    except IstioAuthError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"{program.name}: {line}\n")
        sys.exit(Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED)
    sys.exit(Exit.DONE)


class _Output(enum.Enum):
    TABLE = "table"
    JSON = "json"


def _app(program: Program[Config]) -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,  # they show local variables
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    schema, folders = program.schema, Folders.here()

    def top(context: typer.Context, words: Mapping[str, str]) -> None:
        if _VERSION in words:
            typer.echo(importlib.metadata.version(_DISTRIBUTION))
            raise typer.Exit
        context.obj = words
        if context.invoked_subcommand is None:
            _run(program, words)

    def run_it(context: typer.Context, words: Mapping[str, str]) -> None:
        _run(program, {**context.obj, **words})

    def check_config(context: typer.Context, words: Mapping[str, str]) -> None:
        given = {**context.obj, **words}
        as_json = given.pop(_OUTPUT) == _Output.JSON.value
        loaded = _load(program, given)
        _show(loaded.settings, as_json=as_json)
        program.check(loaded.config)

    epilog = (
        f"Every setting can also be given in the file, or in the environment as {program.prefix}<NAME>, for instance "
        f"{program.prefix}LOG__LEVEL; flags win over the environment, and that over the file.\n\n"
        f"{_AS_IT_IS}Folders here: {folders.config} (configuration)\n"
        f"              {folders.state} (state)\n"
        f"              {folders.runtime} (sockets)\n\n"
        f"{_AS_IT_IS}Exit codes: 0 done, 1 failed, 2 wrong usage or configuration"
    )
    file = folders.config / program.file_name
    version = _parameter(_VERSION, typer.Option("--version", help="show the version and exit"), bool)
    output = _parameter(_OUTPUT, typer.Option("--output", help="how to show it"), _Output, default=_Output.TABLE)
    app.callback(invoke_without_command=True, help=program.about, epilog=epilog)(
        _with_flags(top, schema, file, version)
    )
    app.command("run", help="Run the daemon; the same as no command.")(_with_flags(run_it, schema, file))
    app.command("check-config", help="Check the configuration; show what holds, and where it came from.")(
        _with_flags(check_config, schema, file, output)
    )
    for name, command in program.commands.items():
        app.command(name)(command)
    return app


def _run(program: Program[Config], words: Mapping[str, str]) -> NoReturn:
    signals.hold()
    config = _load(program, words).config
    configure(config.log.level, config.log.format)
    sys.exit(run(lambda daemon: program.serve(config, daemon)))


def _load(program: Program[Config], words: Mapping[str, str]) -> Loaded[Config]:
    return configured(program.schema, prefix=program.prefix, file_name=program.file_name, flags=words)


def _show(settings: Sequence[Effective], *, as_json: bool) -> None:
    if as_json:
        rows = [{"name": s.name, "value": s.word, "origin": s.origin} for s in settings]
        typer.echo(json.dumps({"settings": rows}, indent=2, ensure_ascii=False))
        return
    table = [("SETTING", "VALUE", "ORIGIN"), *((s.name, s.word or "-", s.origin) for s in settings)]
    first, second = (max(len(row[column]) for row in table) for column in (0, 1))
    for name, value, origin in table:
        typer.echo(f"{name:<{first}}  {value:<{second}}  {origin}")


def _with_flags(
    act: Callable[[typer.Context, Mapping[str, str]], None], schema: type, file: Path, *more: inspect.Parameter
) -> Callable[..., None]:
    """A function with a parameter for each flag, for typer, which passes the words of the given flags on to `act`."""
    config = typer.Option(f"--{CONFIG}", help=f"the configuration file, in TOML [default: {file}]", metavar="PATH")
    flags = [leaf for leaf in leaves(schema) if not leaf.row]
    names = {CONFIG: f"--{CONFIG}"} | {_parameter_name(leaf): leaf.flag for leaf in flags}
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, _parameter(CONFIG, config), *map(_flag, flags), *more]

    def command(context: typer.Context, **given: object) -> None:
        act(context, {names.get(name, name): values.to_word(v) for name, v in given.items() if v is not None})

    # Typer reads both: the signature, and the annotations once more for the types.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # where inspect looks for it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _flag(leaf: Leaf) -> inspect.Parameter:
    truth = leaf.kind is bool
    flag = f"{leaf.flag}/--no-{leaf.flag.removeprefix('--')}" if truth else leaf.flag
    shown = "required" if leaf.default is dataclasses.MISSING else f"default: {values.to_word(leaf.default) or 'none'}"
    option = typer.Option(flag, help=f"{leaf.setting.about} [{shown}]".strip(), metavar=None if truth else "VALUE")
    return _parameter(_parameter_name(leaf), option, bool if truth else str)


def _parameter_name(leaf: Leaf) -> str:
    return "__".join(leaf.key)


def _parameter(name: str, option: object, kind: type = str, *, default: object = None) -> inspect.Parameter:
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]  # made for typer, at run time
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
