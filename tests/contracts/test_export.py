"""What comes out of a run: an exported folder that stock transformers loads with equal logits, and text from wherever the model is."""

import contextlib
import io
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.contracts.engines import build_engine
from tests.contracts.tasks import SPREAD, layout
from trainer.cli import main
from trainer.model.generation import generate_text
from trainer.testing import last_wins, run_ranks, train_curve, train_here

FAMILIES = ("llama_tiny", "gpt2_tiny")
PROMPT = "def __init__"
IDS = [[0, 300, 5, 77, 410, 33, 9, 120], [0, 8, 8, 8, 250, 1, 0, 499]]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A finished run of each family, its overrides, and its export in fp32."""
    made = {}

    def run(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            arguments = last_wins(
                [*tiny, f"model={family}", "+strategy=fsdp", "train.steps=30", "optimizer.lr=1e-2", "checkpoint.every=15"]
            )
            train_curve(arguments, folder / "run", 2)
            assert main(["export", f"checkpoint={folder / 'run'}", f"to={folder / 'exported'}"]) == 0
            made[family] = arguments, folder
        return made[family]

    return run


def live_model(arguments, checkpoint, ids):
    """On a rank: logits and texts of the model inside the engine, loaded from a checkpoint."""
    from trainer.state.storage import read_state

    job, engine = build_engine(arguments)
    engine.load_state(partial(read_state, checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(job.corpus.tokenizer_folder)
    sampled = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 4, "num_samples": 2}
    greedy = {"temperature": 0.0, "top_k": None, "top_p": 1.0, "seed": 0}
    with engine.inference() as (model, keywords):
        logits = model(torch.tensor(ids), use_cache=False).logits.numpy()
        texts = [
            generate_text(model, tokenizer, prompt, 24, device=job.device, **how, **keywords)
            for prompt in (PROMPT, "")
            for how in (greedy, sampled)
        ]
    return logits, texts


LAYOUTS = [("fsdp", 2), ("zero3", 2), ("tensor", 2), ("pipeline", 2)]


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        ("llama_tiny", LAYOUTS[:1]),
        pytest.param("llama_tiny", LAYOUTS[1:], marks=pytest.mark.slow),
        # Its matrices a pipeline that splits tensors puts together in another order than they lie.
        pytest.param("gpt2_tiny", [*LAYOUTS, ("3d", 4)], marks=pytest.mark.slow),
    ],
)
def test_stock_transformers_loads_an_export_with_the_logits_of_the_run(runs, family, layouts):
    arguments, folder = runs(family)
    model = AutoModelForCausalLM.from_pretrained(folder / "exported")
    assert model.dtype == torch.float32 and model.lm_head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        exported = model(torch.tensor(IDS), use_cache=False).logits
    checkpoint = folder / "run" / "checkpoints" / "step-30"
    single, *_ = run_ranks(live_model, 1, last_wins([*arguments, "+strategy=single"]), checkpoint, IDS)
    assert torch.equal(torch.from_numpy(single[0]), exported), "bitwise on one rank"
    for strategy, ranks in layouts:
        spread = [SPREAD] if strategy == "zero3" else []
        for logits, texts in run_ranks(live_model, ranks, last_wins([*arguments, *layout(strategy), *spread]), checkpoint, IDS):
            assert torch.allclose(torch.from_numpy(logits), exported, rtol=0, atol=1e-6)
            assert texts == single[1], "greedy and sampled text does not depend on the strategy"
    assert exported.std() > 0.1, "a model that has learned nothing proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_brings_its_tokenizer_and_generation_config(runs, family):
    _, folder = runs(family)
    exported = folder / "exported"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    text = "class Ünïcode:\n\tpass  # ok\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    generation, config = (json.loads((exported / name).read_text()) for name in ("generation_config.json", "config.json"))
    for name in ("bos", "eos", "pad"):
        assert generation[f"{name}_token_id"] == config[f"{name}_token_id"] == getattr(tokenizer, f"{name}_token_id") is not None
    assert config["vocab_size"] == len(tokenizer) == 512
    names = set(load_file(exported / "model.safetensors"))
    assert names == {name for name, _ in AutoModelForCausalLM.from_pretrained(exported).named_parameters()}, "tied weights once"
    inputs = tokenizer("def ", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.generate(**inputs, max_new_tokens=5, do_sample=False).shape[1] <= inputs["input_ids"].shape[1] + 5


def test_a_checkpoint_folder_is_exported_as_it_is(runs, tmp_path, capsys):
    _, folder = runs("llama_tiny")
    earlier = folder / "run" / "checkpoints" / "step-15"
    assert main(["export", f"checkpoint={earlier}", f"to={tmp_path / 'earlier'}"]) == 0
    said = capsys.readouterr().out
    assert str(earlier) in said and "AutoModelForCausalLM.from_pretrained" in said
    ours, last = load_file(tmp_path / "earlier" / "model.safetensors"), load_file(folder / "exported" / "model.safetensors")
    assert ours.keys() == last.keys() and not any(torch.equal(ours[name], last[name]) for name in ours)


def test_bf16_is_the_fp32_rounded(runs, tmp_path):
    _, folder = runs("gpt2_tiny")
    (tmp_path / "half").mkdir()
    assert main(["export", f"checkpoint={folder / 'run'}", f"to={tmp_path / 'half'}", "dtype=bf16"]) == 0, "an empty folder will do"
    half, whole = load_file(tmp_path / "half" / "model.safetensors"), load_file(folder / "exported" / "model.safetensors")
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in whole.items()) and half.keys() == whole.keys()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


@pytest.mark.parametrize("target", ["folder", "file"])
def test_nothing_is_written_over(runs, tmp_path, capsys, target):
    _, folder = runs("llama_tiny")
    to = tmp_path / "to"
    if target == "folder":
        to.mkdir()
        (to / "mine.txt").write_text("mine")
    else:
        to.write_text("mine")
    assert main(["export", f"checkpoint={folder / 'run'}", f"to={to}"]) == 2
    assert f"to={to} exists and is not an empty folder" in capsys.readouterr().err
    assert [path.read_text() for path in (to.iterdir() if target == "folder" else [to])] == ["mine"]


def test_what_holds_no_checkpoint_is_a_sentence(tmp_path, capsys):
    for command in (["export", f"to={tmp_path / 'to'}"], ["generate"]):
        assert main([*command, f"checkpoint={tmp_path}"]) == 2
        assert f"{tmp_path} holds no checkpoint: give a run directory" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_finds_the_model_wherever_it_is(runs, capsys, family):
    _, folder = runs(family)
    tokenizer, model = AutoTokenizer.from_pretrained(folder / "exported"), AutoModelForCausalLM.from_pretrained(folder / "exported")
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False)]])
    stock = tokenizer.decode(model.generate(ids, max_new_tokens=24, do_sample=False)[0], skip_special_tokens=True)
    for source in (folder / "run", folder / "run" / "checkpoints" / "step-30", folder / "exported"):
        capsys.readouterr()
        assert main(["generate", f"checkpoint={source}", f"prompt={PROMPT}", "max_new_tokens=24", "temperature=0"]) == 0
        assert capsys.readouterr().out == stock + "\n", source


def test_generate_samples_by_its_seed(runs, capsys):
    _, folder = runs("llama_tiny")
    texts = []
    for seed in (1, 1, 2):
        capsys.readouterr()
        assert main(["generate", f"checkpoint={folder / 'run'}", "max_new_tokens=20", f"seed={seed}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_folder_that_only_looks_like_a_model_is_a_sentence(runs, tmp_path, capsys):
    _, folder = runs("llama_tiny")
    (tmp_path / "config.json").write_bytes((folder / "exported" / "config.json").read_bytes())
    assert main(["generate", f"checkpoint={tmp_path}"]) == 2
    assert "looks like a Hugging Face folder but cannot be loaded" in capsys.readouterr().err


def train_and_listen(arguments):
    """On a rank: trains; the exit code and what was printed, on one line."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = train_here(arguments)
    return code, " ".join(said.getvalue().split())


@pytest.mark.parametrize(("prompt", "shown"), [("", "a sample of the model"), ("0" * 90, "but the model has 40 positions: shorten it.")])
def test_a_sample_that_does_not_fit_the_model_does_not_fail_the_run(tiny, tmp_path, prompt, shown):
    shape = [*tiny, "model=gpt2_tiny", "model.max_positions=40", "train.steps=5", f"run.dir={tmp_path / 'run'}"]
    sample = [f"sample.prompt={prompt}", "sample.max_new_tokens=500", "sample.temperature=9"]
    (first, said), (second, nothing) = run_ranks(train_and_listen, 2, last_wins([*shape, *sample]))
    assert first == second == json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 0
    assert shown in said and not nothing
