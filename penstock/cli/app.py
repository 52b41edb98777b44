"""The commands, and how each of them ends: exit codes, one sentence, nothing lost."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.main

from penstock import PenstockError, __version__
from penstock.cli.chat import ChatOptions, chat
from penstock.cli.check import CheckOptions, check
from penstock.cli.compare import CompareOptions, compare
from penstock.cli.derive import Aborted, command_of
from penstock.cli.doctor import DoctorOptions, doctor
from penstock.cli.inspect import InspectOptions, inspect
from penstock.cli.methods import MethodsOptions, methods
from penstock.cli.options import RunOptions
from penstock.cli.output import ClosedOutput, Output, abandon_stdout, closed_or_failed, say
from penstock.cli.recommend import RecommendOptions, recommend
from penstock.cli.reducers import ReducersOptions, reducers
from penstock.cli.run import run
from penstock.cli.serve import ServeOptions, serve
from penstock.cli.watch import WatchOptions, watch
from penstock.errors import UsageError
from penstock.models.attach import COMPILING

ABORTED = 130  # as a shell reports a program that Ctrl-C ended

app = typer.Typer(
    name="penstock", help="Run transformer models on streams that never end.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

_COMMANDS: tuple[tuple[type[Any], Callable[[Any], int | None]], ...] = (
    (RunOptions, run),
    (WatchOptions, watch),
    (CompareOptions, compare),
    (RecommendOptions, recommend),
    (MethodsOptions, methods),
    (ReducersOptions, reducers),
    (CheckOptions, check),
    (InspectOptions, inspect),
    (DoctorOptions, doctor),
    (ServeOptions, serve),
    (ChatOptions, chat),
)
for _options, _function in _COMMANDS:
    app.command()(command_of(_options)(_function))


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --version: as a JSON document.")] = False,
) -> None:
    """Run transformer models on streams that never end."""
    if version:
        out = Output(json)
        if json:
            out.document({"penstock": __version__})
        else:
            out.write(f"penstock {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise UsageError("nothing to do: give a command, penstock --help lists them.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    as_json, debug = "--json" in given, "--debug" in given
    _quieten(debug)
    try:
        code = _run(given)
    except ClosedOutput:
        abandon_stdout()
        code = 0
    except (Aborted, KeyboardInterrupt):
        code = _tell("aborted.", ABORTED, as_json)
    except Exception as error:
        if debug:
            traceback.print_exc()
        code = _tell(*_explained(error), as_json)
    return _leave(code, is_process=arguments is None)


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    result = command.main(args=arguments, prog_name="penstock", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _explained(error: Exception) -> tuple[str, int]:
    """One sentence and the exit code."""
    if isinstance(error, PenstockError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: an unknown option, a value of the wrong kind
        sentence = str(error.format_message()).strip() or "nothing to do: give a command."
        return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}.", int(getattr(error, "exit_code", 2))
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "not enough memory: use a smaller model, --dtype bfloat16 or a smaller --budget.", 1
    if isinstance(error, OSError):
        explained = closed_or_failed(error) if isinstance(error, BrokenPipeError) else error
        return f"{explained}: check files and permissions.", 1
    first = (str(error).strip().splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first} (--debug shows where).", 1


def _tell(sentence: str, code: int, as_json: bool) -> int:
    """The sentence on standard error, and with --json also as the last document."""
    say(f"penstock: {sentence}")
    if as_json:
        try:
            Output(True).document({"error": sentence, "exit_code": code})
        except (ClosedOutput, PenstockError):
            abandon_stdout()
    return code


def _quieten(debug: bool) -> None:
    """Other libraries' warnings are not ours to print."""
    if debug:
        return
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()


def _leave(code: int, is_process: bool) -> int:
    """The exit code, unless a compilation in the background would make the process wait for it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
    except (OSError, AttributeError, ValueError):
        code = code or 1
        abandon_stdout()
    if COMPILING.acquire(blocking=False):
        COMPILING.release()
    elif is_process:
        if sys.stderr:
            sys.stderr.flush()
        os._exit(code)
    return code
