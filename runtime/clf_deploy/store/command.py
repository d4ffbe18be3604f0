"""`clf-deploy install`, `activate`, `rollback`, `status` and `gc`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clf_runtime.command import REQUIRE_SIGNATURE_OPTION, Duration, say

if TYPE_CHECKING:
    from clf_deploy.store.install import Installed, InstallOptions

_F = TypeVar("_F", bound=Callable[..., Any])

STORE_OPTION = click.option(
    "--store",
    metavar="DIR",
    envvar="CLF_STORE",
    default="/var/lib/clf-edge",
    show_default=True,
    show_envvar=True,
    help="Folder of the versions of one model on this machine.",
)


def _check_options(command: _F) -> _F:
    """Add the options of `InstallOptions`."""
    options = (
        REQUIRE_SIGNATURE_OPTION,
        click.option("--allow-downgrade", is_flag=True, help="Accept a serial number below one that has run here."),
        click.option(
            "--device",
            metavar="auto|cpu|cuda[:N]|NAME",
            default="auto",
            show_default=True,
            help="Where the model will run, as in clf-run.",
        ),
        click.option("--threads", type=click.IntRange(1), help="Number of cores.  [default: all of this process]"),
        click.option(
            "--max-latency", type=Duration(), help="Longest time of one image, at the median.  [default: any]"
        ),
        click.option(
            "--probation",
            type=Duration(),
            default="0s",
            show_default=True,
            help="How long clf-serve must run the model without a failure; otherwise it returns to the version before.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("install", short_help="Verify a model, install it, and run it.")
@click.argument("model", metavar="MODEL|BUNDLE")
@STORE_OPTION
@_check_options
@click.option("--no-activate", is_flag=True, help="Only install it; clf-deploy activate makes it the current version.")
def install(model: str, store: str, no_activate: bool, **checks: Any) -> None:
    """Verify a model, or the one in a bundle, on this machine, install it, and make it the version that runs."""
    from clf_deploy.bundle.archive import unpacked_model
    from clf_deploy.store.install import install as install_model
    from clf_runtime.store.store import Store

    options = _parse_checks(not no_activate, checks)
    with unpacked_model(Path(model)) as file:
        _report(install_model(file, Store(Path(store)), options, lambda line: say(f"clf-deploy: {line}")))


@click.command("activate", short_help="Run an installed version.")
@click.argument("version", metavar="VERSION")
@STORE_OPTION
@_check_options
def activate(version: str, store: str, **checks: Any) -> None:
    """Verify an installed version (or the start of its name) again, and make it the version that runs."""
    from clf_deploy.store.install import activate as activate_version
    from clf_runtime.store.store import Store

    _report(activate_version(version, Store(Path(store)), _parse_checks(True, checks)))


@click.command("rollback", short_help="Return to the version before.")
@STORE_OPTION
def rollback(store: str) -> None:
    """Return to the version that ran before the current one."""
    from clf_runtime.store.store import Store

    opened = Store(Path(store))
    with opened.locked():
        name = opened.roll_back()
    say(f"clf-deploy: {name} runs again")


@click.command("status", short_help="Show the versions.")
@STORE_OPTION
@click.option(
    "--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Format."
)
def status(store: str, output_format: str) -> None:
    """Show the versions in the store, each with its digest verified."""
    from clf_deploy.store.status import describe
    from clf_runtime.store.store import Store

    described = describe(Store(Path(store)))
    if output_format == "json":
        click.echo(described.to_json())
    elif described.versions:
        click.echo(str(described))
    else:
        say(f"clf-deploy: {store}: no version is installed there; --store or CLF_STORE names another store")


@click.command("gc", short_help="Remove old versions.")
@STORE_OPTION
def gc(store: str) -> None:
    """Remove all versions but the current one and the one before it."""
    from clf_deploy.store.install import collect_garbage
    from clf_runtime.store.store import Store

    for name in collect_garbage(Store(Path(store))):
        say(f"clf-deploy: removed {name}")


def _parse_checks(is_activated: bool, checks: dict[str, Any]) -> InstallOptions:
    from clf_deploy.store.install import InstallOptions
    from clf_runtime.session import silence_log

    silence_log()
    return InstallOptions(
        require_signature=tuple(map(Path, checks["require_signature"])),
        allow_downgrade=checks["allow_downgrade"],
        device=checks["device"],
        threads=checks["threads"],
        max_latency_s=checks["max_latency"],
        probation_s=checks["probation"],
        activate=is_activated,
    )


def _report(installed: Installed) -> None:
    runs = "runs now" if installed.is_active else "is installed, not active"
    say(
        f"clf-deploy: {installed.version} {runs}; self-test passed on {installed.provider}, "
        f"{installed.latency_s * 1000:.3g} ms per image"
    )
