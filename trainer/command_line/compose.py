"""From command line arguments to one composed tree: values are set one by one, all problems are kept; Hydra composes the groups, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from trainer.command_line.overrides import Findings, Override, apply, malformed
from trainer.command_line.presets import Folders
from trainer.command_line.sections import misplaced, name_sections
from trainer.command_line.selection import DEBUG, GLOBAL, PRIMARY, Schemas, Selection, check_files, schema_of, select, set_debug
from trainer.command_line.suggest import did_you_mean, nearest
from trainer.schema import leaf_problems, leaves, open_sections


def compose(
    overrides: Sequence[Override], folders: Folders, root: type, schemas: Schemas, findings: Findings
) -> tuple[DictConfig, Selection]:
    """Reads the files of a config and applies the overrides to what they say. Hydra, which takes longer than that, is not asked yet.

    Args:
        overrides: parsed arguments, valid and not.
        folders: where the groups' options are.
        root: the root dataclass.
        schemas: every group's schemas by name.
        findings: grows by every problem; the tree returned then lacks what could not be applied.
    """
    groups = _groups(folders, schemas)
    for file in folders.shadowed():
        findings.add(f"{file} has the name of a shipped preset, which comes first: give it another name.")
    typed, values = _split(overrides, groups, findings)
    selection = select(folders, root, schemas, typed, findings)
    name_sections(selection.skeleton, selection.files, values, findings)

    def explain(key: str, value: str | None) -> str | None:
        found = misplaced(selection.skeleton, key, value)
        return found or _of_another_option(folders, schemas, selection.choices, key, value, findings)

    tree = check_files(selection, findings, explain)
    set_debug(tree, selection, findings)
    known = leaves(selection.skeleton)
    for override in overrides:
        if not override.valid:
            findings.add(malformed(override, groups, known))
    apply(tree, values, known, findings, explain)
    for override in values:
        selection.origins.pop(override.key, None)
    return tree, selection


def compose_by_hydra(
    tree: DictConfig, overrides: Sequence[Override], folders: Folders, schemas: Schemas, selection: Selection, findings: Findings
) -> DictConfig:
    """What Hydra, which has the last word, makes of a config in which nothing wrong was found; ``tree`` itself where there was.

    Args:
        tree, selection: what ``compose`` returned.
        overrides, folders, schemas: as for ``compose``.
        findings: grows by what Hydra finds.
    """
    if findings.sentences:
        return tree
    typed, values = _split(overrides, _groups(folders, schemas), findings)
    by_debug = {group: selection.choices[group] for file in selection.debug for group, _, _ in file.choices}
    chosen = {group: option for group, option in (by_debug | typed).items() if group != DEBUG}  # which Hydra does not know
    try:
        composed = _hydra(folders, selection.skeleton, schemas, chosen)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        findings.add(f"The YAML files do not compose: {str(error).splitlines()[0].rstrip(' .:')}.")
        return tree
    set_debug(composed, replace(selection, origins={}), findings)  # where keys were set is known already
    apply(composed, values, leaves(selection.skeleton), findings)
    return composed


def check_values(tree: DictConfig, selection: Selection, findings: Findings) -> None:
    """Adds every value that is missing or out of range.

    Args:
        tree: the composed config; a missing text becomes its own key, so that the other checks can go on.
        selection: what it was composed from.
        findings: grows.
    """
    missing = OmegaConf.missing_keys(tree)
    for key, leaf in leaves(selection.skeleton).items():
        section = key.split(".")[0]
        if key in missing:
            if leaf.type is str:
                OmegaConf.update(tree, key, key)
            if not findings.follows(key):
                asked = f" by {section}={selection.choices[section]}" if section in selection.choices else ""
                findings.add(f"{key} is required{asked}: add {key}=VALUE, {leaf.field.metadata['help']}.", key)
        else:
            source = f" ({selection.origins[key]})" if key in selection.origins else ""
            for sentence in leaf_problems(replace(leaf, value=OmegaConf.select(tree, key)), source):
                findings.add(sentence, key)


def _groups(folders: Folders, schemas: Schemas) -> dict[str, list[str]]:
    return {group: folders.options(group) for group in (*schemas, *GLOBAL)}


def _split(overrides: Sequence[Override], groups: Mapping[str, list[str]], findings: Findings) -> tuple[dict[str, str], list[Override]]:
    """Group choices, and the rest."""
    typed: dict[str, str] = {}
    values = []
    for override in overrides:
        if not override.valid:
            continue
        key, value = override.key, override.value or ""
        if key in groups:
            if typed.setdefault(key, value) != value:
                findings.add(f"{key} is given twice, as {typed[key]} and as {value}: keep one.", key)
        elif "." not in key and (near := nearest(key, groups)) and _is_option(value, groups[near]):
            findings.add(f"{key} is not a group{did_you_mean(f'{near}={value}')}", near)
        else:
            values.append(override)
    return typed, values


def _is_option(value: str, options: list[str]) -> bool:
    return nearest(value, options) is not None


def _of_another_option(
    folders: Folders, schemas: Schemas, choices: Mapping[str, str], key: str, value: str | None, findings: Findings
) -> str | None:
    """The sentence for a key that other options of the group have; said once where it is below a section that they have."""
    group, _, name = key.partition(".")
    if group not in schemas:
        return None
    options = {option: cls() for option in folders.options(group) if (cls := schema_of(folders, schemas, group, option))}
    within = {
        option: {part.key for part in open_sections(config) if f"{name}.".startswith(f"{part.key}.")} for option, config in options.items()
    }
    having = [option for option, config in options.items() if within[option] or name in leaves(config)]
    if not having or choices.get(group) in having:
        return None
    findings.spoiled.update(f"{group}.{part}" for option in having for part in within[option])
    typed = f"{group}={having[0]}" if value is None else f"{group}={having[0]} {key}={value}"
    question = did_you_mean(typed if len(having) == 1 else None)
    return f"{key} is not a key of {group}={choices[group]}, but of {', '.join(f'{group}={option}' for option in having)}{question}"


def _hydra(folders: Folders, skeleton: Any, schemas: Schemas, typed: Mapping[str, str]) -> DictConfig:
    """Composes with Hydra; its run directory, chdir and logging belong to hydra.main, which is not used.

    The selected schemas are stored as they stand in the skeleton: with the sections that the user has named.
    """
    store = ConfigStore.instance()
    blank = OmegaConf.structured(type(skeleton))
    for field in fields(skeleton):
        if field.type in (Any, "Any"):  # with a default there, OmegaConf would only let its subclasses in
            blank[field.name] = MISSING
    store.store(name="root", group="schema", node=blank, package="_global_")
    for group, named in schemas.items():
        chosen = getattr(skeleton, group)
        for name, cls in named.items():
            if type(chosen) is cls:
                store.store(name=name, group=f"schema/{group}", node=chosen)
        for name, cls in folders.registered.get(group, {}).items():
            store.store(name=name, group=group, node=chosen if type(chosen) is cls else cls)
    search = [f"file://{Path(path).resolve()}" for path in folders.paths[1:]]
    quoted = ",".join("'" + path.replace("'", "\\'") + "'" for path in search)
    choices = [f"{group}={option}" for group, option in typed.items()]
    with initialize_config_dir(str(folders.paths[0]), version_base="1.3"):
        return hydra_compose(PRIMARY, [*choices, *([f"hydra.searchpath=[{quoted}]"] if search else [])])
