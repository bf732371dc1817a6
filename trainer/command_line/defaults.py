"""What each key is when nobody sets it, to tell what somebody has set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from trainer.command_line.presets import read
from trainer.command_line.selection import PRIMARY, chain
from trainer.config import Config, folders, schemas
from trainer.schema import leaves


def default_values(options: Mapping[str, str]) -> dict[str, Any]:
    """The value of each key by default.

    Args:
        options: the schema of each group of a run. Where it is that of the default option its preset counts, else the schema's own values.
    """
    known, shipped = schemas(), folders()
    values = {key: leaf.value for key, leaf in leaves(Config()).items()}
    for group, option, _ in read(shipped.paths[0] / f"{PRIMARY}.yaml").choices:
        files = chain(shipped, group, option) if option and group in known else []
        schema = next((file.schema for file in files if file.schema), None)
        chosen = options.get(group, schema)
        cls = known.get(group, {}).get(chosen or "")
        if cls is None:
            continue  # a plugin's that is not loaded here
        values |= {key: leaf.value for key, leaf in leaves(cls(), group).items()}
        for file in files if chosen == schema else []:
            values |= {f"{group}.{key}": value for key, value in yaml.safe_load(yaml.serialize(file.root)).items()} if file.root else {}
    return values
