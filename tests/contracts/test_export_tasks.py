"""Every family's export is what stock transformers loads, with the logits of the run; a seq2seq model writes the same wherever it is."""

from functools import partial

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from tests.contracts.engines import build_engine, micro_batches
from tests.contracts.tasks import NAMES
from trainer.cli import main
from trainer.evaluation import Writer
from trainer.model.attention import Attending
from trainer.testing import last_wins, run_ranks, train_curve

QUICK = ("bart",)


def some(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def runs(task, tmp_path_factory):
    """A short run of a task on two ranks, its overrides, and its export."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("export")
            arguments = last_wins([*task(name), "+strategy=fsdp", "train.steps=8", "optimizer.lr=1e-2"])
            train_curve(arguments, folder / "run", 2)
            assert main(["export", f"checkpoint={folder / 'run'}", f"to={folder / 'exported'}"]) == 0
            made[name] = arguments, folder
        return made[name]

    return run


def inside(arguments, checkpoint):
    """On a rank: what the model in the engine is given for its first micro-batch, the logits that it answers, and what it writes."""
    from trainer.state.storage import read_state

    job, engine = build_engine(arguments)
    engine.load_state(partial(read_state, checkpoint))
    batch = micro_batches(job, engine, 1)[0]
    written = None
    with engine.inference() as (model, _), Attending(model.config, job.skeleton.family).to(batch.inputs) as told:
        logits = model(**told, use_cache=False).logits.numpy()
    if job.skeleton.task == "seq2seq":
        writer = Writer(AutoTokenizer.from_pretrained(job.corpus.tokenizer_folder), 4, 12, num_beams=3)
        written = writer.read(engine.gather_over_data(*writer.write(engine, [batch]))[:16])
    return {name: tensor.numpy() for name, tensor in told.items()}, logits, written


@pytest.mark.parametrize("name", some(NAMES))
def test_the_class_that_the_export_names_has_the_logits_of_the_run(runs, name):
    arguments, folder = runs(name)
    stock = getattr(transformers, AutoConfig.from_pretrained(folder / "exported").architectures[0])
    model = stock.from_pretrained(folder / "exported").eval()
    assert model.dtype == torch.float32
    checkpoint = folder / "run" / "checkpoints" / "step-8"
    (told, logits, written), *_ = run_ranks(inside, 1, last_wins([*arguments, "+strategy=single"]), checkpoint)
    with torch.no_grad():
        exported = model(**{key: torch.from_numpy(array) for key, array in told.items()}, use_cache=False).logits
    assert torch.allclose(torch.from_numpy(logits), exported, rtol=0, atol=1e-6) and exported.std() > 1e-3
    for _, _, sharded in run_ranks(inside, 2, arguments, checkpoint):
        assert sharded == written, "what is written does not depend on the strategy"


def generated(arguments):
    """On a rank: what a model writes that has not been called before."""
    _, engine = build_engine(arguments)
    with engine.inference() as (model, more):
        return model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=6, do_sample=False, **more).tolist()


@pytest.mark.parametrize("name", some(["t5", "bart", "two berts"]))
def test_a_sharded_model_writes_before_anything_else(task, name):
    (alone,) = run_ranks(generated, 1, last_wins([*task(name), "+strategy=single"]))
    assert run_ranks(generated, 2, last_wins([*task(name), "+strategy=fsdp"])) == [alone, alone]


@pytest.mark.parametrize("name", some(["t5", "bart", "two berts"]))
def test_generate_writes_a_target_by_beam_search(runs, capsys, name):
    _, folder = runs(name)
    exported = folder / "exported"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    source = "def __init__(self, name):\n    self.name = name"
    ids = [tokenizer.bos_token_id, *tokenizer.encode(source, add_special_tokens=False), tokenizer.eos_token_id]
    config = AutoConfig.from_pretrained(exported)
    model = getattr(transformers, config.architectures[0]).from_pretrained(exported)
    best = model.generate(
        torch.tensor([ids]),
        max_new_tokens=12,
        num_beams=4,
        do_sample=False,
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    stock = tokenizer.decode(best[0], skip_special_tokens=True)
    for place in (folder / "run", exported):
        capsys.readouterr()
        assert main(["generate", f"checkpoint={place}", f"prompt={source}", "max_new_tokens=12", "num_beams=4"]) == 0
        assert capsys.readouterr().out == stock + "\n", place
    assert main(["generate", f"checkpoint={exported}"]) == 2
    assert "a seq2seq model needs a source" in capsys.readouterr().err


def test_a_model_that_writes_nothing_is_a_sentence(runs, capsys):
    _, folder = runs("roberta")
    for place in (folder / "run", folder / "exported"):
        assert main(["generate", f"checkpoint={place}"]) == 2
        assert "is a model for masked_lm, which writes no text" in capsys.readouterr().err
