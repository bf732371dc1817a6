"""A run's config under a launcher that has one of its own: where the command line is silent the launcher's decides, else they must agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from trainer.command_line.accelerate import CONFIG, Claim, Told, differences, read
from trainer.command_line.overrides import Override, parse
from trainer.command_line.presets import ConfigFile, Folders
from trainer.command_line.selection import GLOBAL, chain
from trainer.config import Config, folders
from trainer.config import load as load_alone
from trainer.errors import Refused


@dataclass(frozen=True)
class Said:
    """A value that the user gave, and `` (FILE:LINE)`` where it stands in a file."""

    value: str
    place: str = ""


def load(
    arguments: Sequence[str], world_size: int | None, config_dir: str | None, environ: Mapping[str, str]
) -> tuple[Config, dict[str, str]]:
    """Reads and checks a command line as ``trainer.config.load`` does, with what accelerate says added where it is silent.

    What an experiment or a debug option says counts as the command line, on which it was chosen.

    Args:
        arguments: overrides.
        world_size: number of ranks, or None where they are not known yet.
        config_dir: a folder with the user's own options.
        environ: this process's environment.

    Returns:
        The config, and what accelerate has decided, in words, by the fact of the opening summary that they go with.

    Raises:
        Refused: with every problem that was found.
    """
    told = read(environ)
    if told is None:
        return load_alone(arguments, world_size, config_dir), {}
    added, problems = _agreed(told, parse(arguments), folders(config_dir))
    try:
        config = load_alone([*arguments, *(f"{claim.key}={claim.value}" for claim in added)], world_size, config_dir)
    except Refused as refused:
        raise Refused([*told.problems, *problems, *(_explained(problem, added) for problem in refused.problems)]) from refused
    problems = [*told.problems, *problems, *differences(told, _accumulation(config, world_size), config.optimizer.max_grad_norm)]
    if problems:
        raise Refused(problems)
    return config, _notes(told, added)


def _agreed(told: Told, overrides: Sequence[Override], places: Folders) -> tuple[list[Claim], list[str]]:
    """The claims about which the user says nothing, and a sentence for each that contradicts what the user says."""
    added: list[Claim] = []
    problems: list[str] = []
    said = _said(told, overrides, places)
    for group in dict.fromkeys(claim.key.split(".")[0] for claim in told.claims):
        claims = [claim for claim in told.claims if claim.key.split(".")[0] == group]
        wrong = [claim for claim in claims if claim.certain and claim.key in said and not _same(claim, said[claim.key].value, places)]
        problems += [_contradiction(claim, said[claim.key]) for claim in wrong if not (claim.implied and group in said)]
        if wrong or (not claims[0].certain and any(claim.key in said for claim in claims)):
            continue  # a strategy's keys would be unknown to another one
        added += [claim for claim in claims if not claim.implied and claim.key not in said]
    return added, problems


def _said(told: Told, overrides: Sequence[Override], places: Folders) -> dict[str, Said]:
    """What the user says of groups and keys: on the command line, else in debug, else in an experiment, else in an option of their own."""
    typed = {override.key: Said(override.value or "") for override in overrides if override.valid}
    files = [file for name in GLOBAL if name in typed for file in chain(places, name, typed[name].value)]
    said = {group: Said(option or "", f" ({file.shown}:{line})") for file in files for group, option, line in file.choices}
    chosen = said | typed
    own: dict[str, Said] = {}
    for claim in told.claims:
        if claim.key in chosen and "." not in claim.key:
            shipped = {file.shown for file in chain(places, claim.key, claim.value)}
            own |= _values([file for file in chain(places, claim.key, chosen[claim.key].value) if file.shown not in shipped], claim.key)
    return own | said | _values(files, "") | typed


def _values(files: Sequence[ConfigFile], prefix: str) -> dict[str, Said]:
    """Every value that files set, later ones over earlier ones."""
    return {key: said for file in files if file.root is not None for key, said in _leaves(file, file.root, file.prefix(prefix))}


def _leaves(file: ConfigFile, node: yaml.MappingNode, section: str) -> Iterator[tuple[str, Said]]:
    for name, value in node.value:
        key = f"{section}.{name.value}" if section else str(name.value)
        if isinstance(value, yaml.MappingNode):
            yield from _leaves(file, value, key)
        elif isinstance(value, yaml.ScalarNode):
            yield key, Said(value.value, f" ({file.place(name)})")


def _same(claim: Claim, value: str, places: Folders) -> bool:
    """Whether what the user says is what is claimed: the same value, or an option that builds on the one claimed."""
    if "." not in claim.key:
        return claim.value == value or any(claim.value in file.parents for file in chain(places, claim.key, value))
    try:
        return bool(yaml.safe_load(claim.value) == yaml.safe_load(value))
    except yaml.YAMLError:
        return False


def _contradiction(claim: Claim, said: Said) -> str:
    ours, theirs = f"{claim.key}={said.value}", f"{claim.key}={claim.value}"
    fix = f"add {theirs}" if said.place else f"leave {ours} out"
    return f"{ours}{said.place} contradicts {claim.yaml} in {CONFIG}, which is {theirs}: {fix}, or change the YAML."


def _explained(problem: str, added: Sequence[Claim]) -> str:
    """A problem, with where the values in it come from that the user did not type."""
    found = [claim for claim in added if re.search(rf"(?<![\w.]){re.escape(f'{claim.key}={claim.value}')}(?![\w?])", problem)]
    if not found:
        return problem
    return f"{problem} ({', '.join(f'{claim.key}={claim.value} is {claim.yaml}' for claim in found)} in {CONFIG}.)"


def _accumulation(config: Config, world_size: int | None) -> int | None:
    if world_size is None:
        return None
    return -(-config.train.global_batch // (config.strategy.degrees(world_size).data * config.train.micro_batch))


def _notes(told: Told, added: Sequence[Claim]) -> dict[str, str]:
    notes: dict[str, str] = {}
    for group in ("strategy", "precision"):
        if own := [claim for claim in added if claim.key.split(".")[0] == group and claim.value != "null"]:
            notes[group] = f"from {CONFIG}: {', '.join(dict.fromkeys(claim.yaml for claim in own))}"
            if not own[0].certain:
                notes[group] += f" ({group}=... on the command line changes it)"
    rest = [f"{claim.key}={claim.value} is {claim.yaml}" for claim in added if claim.key == "run.device"]
    reasons: dict[str, list[str]] = {}
    for key, why in told.unused.items():
        reasons.setdefault(why, []).append(key)
    unused = "; ".join(f"{', '.join(keys)} ({why})" for why, keys in reasons.items())
    if parts := [*rest, *([f"not used: {unused}"] if unused else [])]:
        notes["accelerate"] = "; ".join(parts)
    return notes
