"""From command line arguments to one composed tree: Hydra composes the groups once, values are set one by one, all problems are kept."""

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
from trainer.command_line.selection import EXPERIMENT, PRIMARY, Schemas, Selection, check_files, schema_of, select
from trainer.command_line.suggest import did_you_mean, nearest
from trainer.schema import leaf_problems, leaves


def compose(
    overrides: Sequence[Override], folders: Folders, root: type, schemas: Schemas, findings: Findings
) -> tuple[DictConfig, Selection]:
    """Composes a config and applies the overrides to it.

    Args:
        overrides: parsed arguments, valid and not.
        folders: where the groups' options are.
        root: the root dataclass.
        schemas: every group's schemas by name.
        findings: grows by every problem; the tree returned then lacks what could not be applied.
    """
    groups = {group: folders.options(group) for group in (*schemas, EXPERIMENT)}
    for file in folders.shadowed():
        findings.add(f"{file} has the name of a shipped preset, which comes first: give it another name.")
    typed, values = _split(overrides, groups, findings)
    selection = select(folders, root, schemas, typed, findings)
    tree = check_files(selection, findings)
    if not findings.sentences:
        try:
            tree = _hydra(folders, root, schemas, typed)
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            findings.add(f"The YAML files do not compose: {str(error).splitlines()[0].rstrip(' .:')}.")
    known = leaves(selection.skeleton)
    for override in overrides:
        if not override.valid:
            findings.add(malformed(override, groups, known))

    def elsewhere(section: str, name: str, value: str | None) -> str | None:
        return _of_another_option(folders, schemas, selection.choices, section, name, value)

    apply(tree, values, known, findings, elsewhere)
    for override in values:
        selection.origins.pop(override.key, None)
    return tree, selection


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
            if key not in findings.spoiled:
                asked = f" by {section}={selection.choices[section]}" if section in selection.choices else ""
                findings.add(f"{key} is required{asked}: add {key}=VALUE, {leaf.field.metadata['help']}.", key)
        else:
            source = f" ({selection.origins[key]})" if key in selection.origins else ""
            for sentence in leaf_problems(replace(leaf, value=OmegaConf.select(tree, key)), source):
                findings.add(sentence, key)


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
    folders: Folders, schemas: Schemas, choices: Mapping[str, str], section: str, name: str, value: str | None
) -> str | None:
    """The sentence for a key that other options of the group have."""
    if section not in schemas:
        return None
    having = [
        option for option in folders.options(section) if (cls := schema_of(folders, schemas, section, option)) and name in leaves(cls())
    ]
    if not having:
        return None
    question = did_you_mean(f"{section}={having[0]} {section}.{name}={value}" if len(having) == 1 else None)
    return f"{section}.{name} is not a key of {section}={choices[section]}, but of {', '.join(f'{section}={option}' for option in having)}{question}"


def _hydra(folders: Folders, root: type, schemas: Schemas, typed: Mapping[str, str]) -> DictConfig:
    """Composes with Hydra; its run directory, chdir and logging belong to hydra.main, which is not used."""
    store = ConfigStore.instance()
    blank = OmegaConf.structured(root)
    for field in fields(root):
        if field.type in (Any, "Any"):  # with a default there, OmegaConf would only let its subclasses in
            blank[field.name] = MISSING
    store.store(name="root", group="schema", node=blank, package="_global_")
    for group, named in schemas.items():
        for name, cls in named.items():
            store.store(name=name, group=f"schema/{group}", node=cls)
        for name, cls in folders.registered.get(group, {}).items():
            store.store(name=name, group=group, node=cls)
    search = [f"file://{Path(path).resolve()}" for path in folders.paths[1:]]
    quoted = ",".join("'" + path.replace("'", "\\'") + "'" for path in search)
    choices = [f"{group}={option}" for group, option in typed.items()]
    with initialize_config_dir(str(folders.paths[0]), version_base="1.3"):
        return hydra_compose(PRIMARY, [*choices, *([f"hydra.searchpath=[{quoted}]"] if search else [])])
