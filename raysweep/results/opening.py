"""Opening of several sweeps that are read together."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.errors import InputError
from raysweep.plugins import activate
from raysweep.results.store import Store
from raysweep.results.sweep_file import read_sweep, with_proposals
from raysweep.space import Sweep, rebuild


def open_sweeps(places: Sequence[str]) -> list[tuple[Store, Sweep]]:
    """Open existing sweeps to read them, also while they run. Nothing is written, except copies of buckets' files.

    Raises:
        InputError: There is no sweep at a place, a sweep is given twice, or no version of a plugin fits all sweeps.
    """
    opened = with_common_parts([Store.open(place, copies="reports", only_read=True) for place in places])
    for store, _ in opened:
        store.pull()
    roots = [store.root.resolve() for store, _ in opened]
    twice = next((place for place, root in zip(places, roots, strict=True) if roots.count(root) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: is given twice; a sweep is compared with others, not with itself")
    return opened


def with_common_parts(opened: Sequence[tuple[Store, Sweep]]) -> list[tuple[Store, Sweep]]:
    """Activate the plugins of all sweeps, and check the settings of each sweep again, so that all have the same names.

    Only one version of a plugin can be active. If a plugin changed between the sweeps, this is the version of the last
    sweep whose plugins fit the settings of all sweeps.

    Raises:
        InputError: The plugins of no sweep fit the settings of all sweeps.
    """
    plugins = [plugin for _, sweep in opened for plugin in sweep.plugins]
    if not plugins:
        return list(opened)
    faults = []
    for _, preferred in reversed(opened):
        try:
            activate({plugin.name: plugin for plugin in (*plugins, *preferred.plugins)}.values())
            return [(store, checked_again(store, sweep)) for store, sweep in opened]
        except InputError as fault:
            faults.append(fault)
    versions = {(plugin.name, plugin.digest) for plugin in plugins}
    names = [name for name, _ in versions]
    changed = sorted({name for name in names if names.count(name) > 1})
    if not changed:
        raise faults[0]
    raise InputError(
        f"{', '.join(changed)}: changed between the sweeps, and no version fits the settings of all sweeps: {faults[0]}"
    )


def checked_again(store: Store, sweep: Sweep) -> Sweep:
    """Return an open sweep with settings that the active parts have checked."""
    content = read_sweep(store.root / "sweep.yaml")
    return with_proposals(store.root, rebuild(content, f"{store.place}/sweep.yaml", sweep.plugins))
