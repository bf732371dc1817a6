"""Help is complete, aligned and narrow."""

import re

import pytest

from trainer import cli, config
from trainer.commands.config import SETTINGS
from trainer.schema import leaves


@pytest.fixture
def page(capsys):
    def read(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 0
        return capsys.readouterr().out

    return read


def test_overview_shows_every_group_option_and_key(page):
    text = page("train", "--help")
    for group in (*config.GROUPS, "experiment", "debug"):
        assert all(option in text for option in config.folders().options(group))
    for key, leaf in leaves(config.load([], 1)).items():
        assert key in text
        assert leaf.field.metadata["help"].split()[0] in text
    assert "ddp (default)" in text
    assert "llama_tiny (default)" in text


@pytest.mark.parametrize("group", config.GROUPS)
def test_a_groups_page_shows_every_key_of_every_schema(page, group):
    text = page("train", "--help", group)
    for cls in config.GROUPS[group].values():
        assert all(key in text for key in leaves(cls(), group))
    assert all(f"  {option}" in text for option in config.folders().options(group))


def test_a_groups_page_says_what_each_option_sets(page):
    assert "replicate=2 shard=null fully_shard=true" in page("train", "--help", "strategy")
    assert "train.micro_batch" in page("train", "--help", "train")
    assert re.search(r"^  gpt2_stdlib +GPT-2, tiny, on the source", page("train", "--help", "experiment"), re.MULTILINE)
    assert "cpu  Any run in about a minute" in page("train", "--help", "debug")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], *(["train", "--help", group] for group in (*config.GROUPS, "run", "experiment", "debug"))],
)
def test_no_line_is_wider_than_100(page, arguments):
    assert max(map(len, page(*arguments).splitlines())) <= 100


def test_commands(page):
    assert all(command in page("--help") for command in cli.COMMANDS)
    for command, settings in SETTINGS.items():
        assert all(key in page(command, "--help") for key in leaves(settings()))


def test_every_field_has_a_meaning():
    for named in config.GROUPS.values():
        for cls in named.values():
            assert all(leaf.field.metadata.get("help") for leaf in leaves(cls()).values())
