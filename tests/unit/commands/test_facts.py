"""What a run says before and after: the facts of every kind of task, in its own units."""

from dataclasses import replace
from pathlib import Path

import pytest

from trainer.assembly import open_job
from trainer.callbacks.console import PlainLines
from trainer.callbacks.ranks import Ranks
from trainer.callbacks.summary import mean_shares, share_texts
from trainer.config import load
from trainer.distributed.launch import Launch
from trainer.session.facts import closing_facts, opening_facts, unit
from trainer.testing import last_wins
from trainer.trainer import Outcome
from trainer.types import Evaluation, StepRecord

FOLDER = Path("runs/x y")
ALONE = Ranks([2**20], [0.0], None, 0.0)


@pytest.fixture
def job(task):
    def build(name, *more):
        return open_job(load(last_wins([*task(name), *more]), 1), Launch())

    return build


def outcome(job, step, seconds=2.0):
    evaluation = Evaluation(step, {"loss": 1.5}, 10)
    record = StepRecord(step, 1.25, 0.5, 1e-3, 10, "0", 5.0, 6.0, None, None, 1, True, {})
    return Outcome(step=step, tokens_seen=1000, seconds=seconds, stopped_by=None, last=record, evaluation=evaluation, phases={})


def test_packed_rows_are_told_in_slots_and_tokens(job):
    llama = job("llama", "train.global_batch=12", "train.micro_batch=4", "train.steps=50")
    facts, num_rows = opening_facts(llama, FOLDER, 2, 0), len(llama.corpus.samples("train"))
    assert list(facts) == ["model", "objective", "strategy", "precision", "attention", "batch", "data", "steps", "run"]
    assert facts["attention"].startswith("SDPA")
    assert facts["batch"] == "12 samples x 32 slots = 384 slots a step; 2 x 3 samples per rank"
    assert facts["steps"] == f"50 = {600 / num_rows:.2f} epochs = 19.2 k tokens"
    assert facts["data"].startswith(f"{num_rows:,} samples (") and facts["objective"] == "causal_lm"
    assert opening_facts(llama, FOLDER, 2, 7)["steps"].endswith("; 7 are done")


def test_the_type_in_which_moments_rest_is_told(job):
    told = {moments: opening_facts(job("llama", f"optimizer.moments={moments}"), FOLDER, 1, 0)["precision"] for moments in ("fp32", "bf16")}
    assert told["fp32"] == "compute fp32; master weights, gradients, moments and loss fp32"
    assert told["bf16"] == "compute fp32; master weights, gradients and loss fp32; moments bf16"


@pytest.mark.parametrize(("capability", "precision", "slow"), [("AVX2", "bf16", True), ("AVX512", "bf16", False), ("AVX2", "fp32", False)])
def test_a_cpu_that_is_slow_in_bf16_is_told_of(job, monkeypatch, capability, precision, slow):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    told = opening_facts(job("llama", f"precision={precision}"), FOLDER, 1, 0)["precision"]
    assert ("precision=fp32 takes a fraction of the time" in told) == slow


def test_what_the_launcher_decided_is_told_beside_it(job):
    llama = job("llama")
    launch = Launch(notes={"strategy": "from a launcher: stage 3", "launcher": "not used: a, b"})
    facts, alone = opening_facts(replace(llama, launch=launch), FOLDER, 1, 0), opening_facts(llama, FOLDER, 1, 0)
    assert facts == alone | {"strategy": f"{alone['strategy']}, from a launcher: stage 3", "launcher": "not used: a, b"}


def test_the_tensor_axis_is_told_where_there_is_one(task):
    told = {}
    for more in ("strategy=fsdp", "strategy.tensor=2"):
        arguments = last_wins([*task("llama"), "strategy=fsdp", more])
        made = open_job(load(arguments, 4), Launch(0, 4, 0, 4))
        told[more] = opening_facts(made, FOLDER, made.config.strategy.degrees(4).data, 0)
    assert told["strategy=fsdp"]["strategy"] == "fsdp on 4 x CPU: replicate 1, shard 4"
    assert told["strategy.tensor=2"]["strategy"] == "fsdp on 4 x CPU: replicate 1, shard 2, tensor 2"
    assert told["strategy.tensor=2"]["batch"].endswith("1 x 8 samples per rank")


def test_padded_rows_are_told_by_field(job):
    facts = opening_facts(job("t5", "train.global_batch=16"), FOLDER, 1, 0)
    assert facts["batch"] == "16 samples x up to 48 source and 16 target slots a step; 1 x 16 samples per rank"
    assert "tokens" not in facts["steps"] and "records held out" in facts["data"]
    assert opening_facts(job("bert classes"), FOLDER, 1, 0)["batch"].startswith("16 samples x up to 48 slots a step")


def test_an_objective_is_told_with_its_settings(job):
    facts = opening_facts(job("roberta"), FOLDER, 1, 0)
    assert facts["objective"] == "masked_lm: probability 0.15, masked 0.8, random 0.1, whole_word true"


def test_a_new_head_is_told_until_it_is_trained(job):
    berts = job("two berts")
    new, facts = berts.weights.new, opening_facts(berts, FOLDER, 1, 0)
    assert len(new) > 10 and all(".crossattention." in name or name.startswith("decoder.cls.predictions.") for name in new)
    assert (
        facts["new"].startswith(f"{len(new)} tensors (")
        and "crossattention.*" in facts["new"]
        and facts["new"].endswith("untrained so far")
    )
    assert "new" not in opening_facts(berts, FOLDER, 1, 3), "its checkpoint holds all"
    assert "new" not in opening_facts(job("bert"), FOLDER, 1, 0) and job("bert").weights.new == []


def test_a_mix_is_told_by_part(corpus_folder, tmp_path):
    parts = {
        "code": {"kind": "text", "path": corpus_folder, "weight": 51},
        "prose": {"kind": "text", "path": corpus_folder / "typing.py", "weight": 49},
    }
    mix = [f"data.parts.{name}.{key}={value}" for name, part in parts.items() for key, value in part.items()]
    common = ["data.sequence_length=32", "data.tokenizer.vocab_size=512", f"data.cache_dir={tmp_path}", "run.quiet=true", "run.device=cpu"]
    job = open_job(load(["data=mix", *mix, *common, "train.steps=100"], 1), Launch())
    facts, samples = opening_facts(job, FOLDER, 1, 0), job.corpus.samples("train").parts
    assert facts["  code"].startswith(f"51 % of the samples: {len(samples['code']):,} samples (")
    assert facts["  prose"].endswith(f"{0.49 * 1600 / len(samples['prose']):.2f} epochs") and "epochs" not in facts["steps"]


def test_shares():
    changing = {"a": (3.0, 1.0), "b": (1.0, 1.0)}
    assert share_texts(changing) == {"a": "75 % to 50 %", "b": "25 % to 50 %"}
    assert mean_shares(changing) == {"a": 0.625, "b": 0.375}
    assert share_texts({"a": (51.0, 51.0), "b": (49.0, 49.0)}) == {"a": "51 %", "b": "49 %"}


@pytest.mark.parametrize(
    ("name", "per", "writes"),
    [
        ("llama", "tokens", True),
        ("bert", "tokens", False),
        ("t5", "tokens", True),
        ("bert classes", "samples", False),
        ("bert tags", "labels", False),
    ],
)
def test_the_end_is_told_in_its_own_unit_with_what_can_be_done(name, per, writes, job):
    made = job(name)
    plan = type("Plan", (), {"steps": 20})()
    facts = closing_facts(made, FOLDER, outcome(made, 20), plan, ALONE, 400)
    assert facts["speed"].startswith(f"300 {per}/s over 2.0 s") and unit(made.corpus.needs) == per
    assert ("generate" in facts) == writes
    assert facts["evaluate"] == "isotrain evaluate checkpoint='runs/x y'"
    assert facts["report"] == "runs/x y/report.html"
    assert facts["export"] == "isotrain export checkpoint='runs/x y' to='runs/x y/model'"
    if name == "t5":
        assert facts["generate"].endswith(" prompt='A SOURCE'")
    early = closing_facts(made, FOLDER, outcome(made, 5), plan, ALONE, 400)
    assert "metrics" in early and not {"generate", "evaluate", "export"} & set(early)


def test_evaluate_is_not_proposed_where_nothing_is_held_out(job):
    made = job("llama", "data.validation_fraction=0")
    assert "evaluate" not in closing_facts(made, FOLDER, outcome(made, 20), type("Plan", (), {"steps": 20})(), ALONE, 0)


def test_lines_tell_the_unit(capsys):
    from rich.console import Console

    record = StepRecord(1, 1.25, 0.5, 1e-3, 10, "0", 1234.0, 2000.0, None, None, 1, True, {})
    PlainLines(Console(), 10, "samples").on_log([record])
    PlainLines(Console(), 10).on_log([replace(record, step=10)])
    PlainLines(Console(), 10).on_log([replace(record, step=10, bubble=0.273)])
    first, second, piped = capsys.readouterr().out.splitlines()
    assert first.endswith("  1,234 samples/s") and second.endswith("  1,234 tokens/s")
    assert piped.endswith("  1,234 tokens/s  bubble 27%")
