"""Evaluation is right over ranks: on any number of them it says what one pass over all held-out samples says, worked out without it."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics import classification as judges
from torchmetrics.text import ROUGEScore
from transformers import AutoTokenizer

from tests.contracts.tasks import layout
from tests.unit.objective.pairs import mask_of, pieces
from trainer import assembly
from trainer.config import load
from trainer.distributed.launch import Launch, read_launch
from trainer.distributed.process_group import start_process_group
from trainer.engine.loop import Loop
from trainer.model.head import Scorer, swap_head
from trainer.model.skeleton import CLASSES
from trainer.testing import last_wins, run_ranks
from trainer.types import IGNORE

NUM_SAMPLES, NUM_WRITTEN, TARGET = 29, 13, 16  # primes: no number of ranks divides them
SOUNDS = {"cat": "meow", "dog": "woof woof", "cow": "moo", "sheep": "baa baa baa", "duck": "quack"}
DOES = ("eats", "sleeps", "hides", "walks", "sits", "runs")
SHAPE = ["model.hidden_size=32", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=64"]
CASES = {
    "causal_lm": ["model=llama_tiny", *SHAPE],
    "masked_lm": ["objective=masked_lm", "model=bert_tiny", *SHAPE],
    "masked_lm, padded": ["objective=masked_lm", "model=roberta_tiny", "data.packing=false", "objective.whole_word=true", *SHAPE],
    "span_corruption": ["objective=span_corruption", "model=t5_tiny", *SHAPE],
    "seq2seq": ["objective=seq2seq", "model=bart_tiny", f"data.target_length={TARGET}", *SHAPE],
    "single_label": ["objective=classification", "model=bert_tiny", *SHAPE],
    "multi_label": ["objective=classification", "objective.kind=multi_label", "data.label=tags", "model=llama_tiny", *SHAPE],
    "regression": ["objective=classification", "objective.kind=regression", "data.label=number", "model=roberta_tiny", *SHAPE],
}
MIXED = ("seq2seq", "single_label")


def write_corpus(path, num, seed):
    """Animals and what they say. Some of it can be learned in seconds, some of it is chance: no metric should be 0 or 1."""
    rng, lines = np.random.default_rng(seed), []
    for _ in range(num):
        length = min(2 + int(rng.exponential(6)), 40)  # mostly short: padded batches differ in width
        animal, does = str(rng.choice(list(SOUNDS))), rng.choice(list(DOES), length).tolist()
        text = f"the {animal} {' '.join(does)}"
        tags = [tag for tag, has in (("hungry", "eats" in does), ("loud", animal in ("dog", "cow")), ("odd", rng.random() < 0.3)) if has]
        target = f"{animal} says {SOUNDS[animal]}" + (" loudly" if rng.random() < 0.4 else "")
        label = animal if rng.random() < 0.8 else str(rng.choice(list(SOUNDS)))
        lines.append({"text": text, "source": text, "target": target, "label": label, "tags": tags, "number": len(tags) + rng.normal() / 4})
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What all cases have, and the corpora: one of its own, and a mix of a large and a small one."""
    folder = tmp_path_factory.mktemp("evaluation")
    first, second = write_corpus(folder / "first.jsonl", 600, 0), write_corpus(folder / "second.jsonl", 60, 1)
    common = [
        "data.sequence_length=48",
        "data.validation_fraction=0.3",
        "data.tokenizer.vocab_size=500",
        f"data.cache_dir={folder / 'cache'}",
        "precision=fp32",
        "train.micro_batch=4",
        f"train.evaluate_samples={NUM_SAMPLES}",
        f"train.evaluate_generate={NUM_WRITTEN}",
        "run.device=cpu",
        "run.quiet=true",
    ]
    parts = [f"data.parts.{name}.{key}" for name, path in (("big", first), ("small", second)) for key in ("kind=jsonl", f"path={path}")]
    return folder, {"one": ["data=jsonl", f"data.path={first}", *common], "mix": ["data=mix", *parts, *common]}


def opened(arguments):
    """Everything that one rank knows, without a process group."""
    return assembly.open_job(load(arguments, 1), Launch())


def learn(arguments, folder, steps):
    """Writes a model that has learned a little: in a plain loop, saved by transformers."""
    job = opened(last_wins([*arguments, "train.micro_batch=16"]))
    torch.manual_seed(0)
    stock, scored = (CLASSES[job.skeleton.task].from_config(job.skeleton.model.config) for _ in range(2))
    scorer = Scorer(scored, swap_head(scored, job.skeleton.head), job.skeleton.family, job.skeleton.head.bias)
    loop = Loop(
        SimpleNamespace(model=scored, scorer=scorer, rehearses=False),
        SimpleNamespace(objective=job.config.objective, device=torch.device("cpu"), seed=0),
        0,
        1,
    )
    optimizer = torch.optim.AdamW(scored.parameters(), lr=3e-3)
    for _, _, batches in assembly.build_loader(job, SimpleNamespace(data_rank=0, data_size=1)).steps(1, steps):
        for batch in batches:
            for term in loop.terms(batch, scorer).values():
                (term.sum / (len(batches) * batch.counts[term.count_key])).backward()
        optimizer.step()
        optimizer.zero_grad()
    stock.load_state_dict(scored.state_dict())
    stock.save_pretrained(folder)
    for path in job.corpus.tokenizer_folder.iterdir():
        shutil.copy(path, folder)


@pytest.fixture(scope="module")
def cases(base):
    """Command lines by name, each with a model that has learned a little."""
    folder, data = base
    made = {}
    for name, own in CASES.items():
        arguments = [*data["one"], *own]
        learn(arguments, folder / name, steps=150 if name == "seq2seq" else 60)
        pretrained = [item for item in own if not item.startswith("model")]
        made[name] = [*data["one"], *pretrained, "model=pretrained", f"model.path={folder / name}"]
        if name in MIXED:
            made[f"{name}, mix"] = [*data["mix"], *pretrained, "model=pretrained", f"model.path={folder / name}"]
    return made


@torch.no_grad()
def seen(job, model, samples):
    """What the stock model says of samples all over the split, all at once: losses, guesses, texts."""
    objective, number = job.config.objective, min(job.config.train.evaluate_samples, len(samples))
    ids = np.array([place * len(samples) // number for place in range(number)])
    taken = samples.take(ids)
    batch, rows = assembly.collator(job)(taken), next(iter(taken.rows.values()))
    found = SimpleNamespace(labels=batch.labels, count=batch.counts["targets"], size=len(ids), texts=[], references=[])
    if objective.task in ("causal_lm", "masked_lm"):
        labels = batch.labels
        if batch.places is not None:
            labels = torch.full_like(batch.inputs["input_ids"], IGNORE)
            labels.view(-1)[batch.places] = batch.labels
        logits = torch.zeros(*labels.shape, model.config.vocab_size)
        for row, begin, end in pieces(rows):  # each document by itself; a row's last token may only be a label
            ids = batch.inputs["input_ids"][row : row + 1, begin:end]
            if ids.numel():
                logits[row, begin : begin + ids.shape[1]] = model(ids, use_cache=False).logits[0]
        found.nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        found.hits = int((logits.argmax(-1) == labels)[labels != IGNORE].sum())
        return found
    inputs = {"input_ids": batch.inputs["input_ids"], "attention_mask": mask_of(batch)}
    output = model(**inputs, labels=batch.labels)
    found.nll, found.logits = output.loss.item() * found.count, output.logits
    if objective.task == "seq2seq" and getattr(objective, "writes", False):
        tokenizer = AutoTokenizer.from_pretrained(job.config.model.path)
        first = {name: tensor[: job.config.train.evaluate_generate] for name, tensor in inputs.items()}
        written = model.generate(**first, max_new_tokens=TARGET, num_beams=job.config.sample.num_beams, do_sample=False)
        found.texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        tokens = taken.rows["target"].tokens[: len(found.texts)]
        found.references = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return found


def judged(objective, parts):
    """Metrics of what was seen of some samples, by torchmetrics' own classes."""
    count = sum(part.count for part in parts)
    loss = sum(part.nll for part in parts) / count
    told = {"loss": loss} | ({"perplexity": np.exp(loss)} if objective.task != "classification" else {})
    if objective.task == "masked_lm":
        told["masked_accuracy"] = sum(part.hits for part in parts) / count
    if texts := [text for part in parts for text in part.texts]:
        references = [reference for part in parts for reference in part.references]
        told["rouge_l"] = ROUGEScore(rouge_keys="rougeL")(texts, references)["rougeL_fmeasure"].item()
        told["exact_match"] = np.mean([text == reference for text, reference in zip(texts, references, strict=True)])
    if objective.task != "classification":
        return told
    logits, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "labels"))
    match objective.kind:
        case "single_label":
            metrics = {
                "accuracy": judges.MulticlassAccuracy(logits.shape[1], average="micro"),
                "f1_macro": judges.MulticlassF1Score(logits.shape[1], average="macro"),
            }
        case "multi_label":
            labels = labels.long()
            metrics = {
                "exact_match": judges.MultilabelExactMatch(logits.shape[1]),
                "f1_micro": judges.MultilabelF1Score(logits.shape[1], average="micro"),
                "f1_macro": judges.MultilabelF1Score(logits.shape[1], average="macro"),
            }
        case "regression":
            logits = logits[:, 0]
            metrics = {
                "mean_absolute_error": torchmetrics.MeanAbsoluteError(),
                "pearson": torchmetrics.PearsonCorrCoef(),
                "spearman": torchmetrics.SpearmanCorrCoef(),
            }
    return told | {name: metric(logits, labels).item() for name, metric in metrics.items()}


@pytest.fixture(scope="module")
def by_hand(cases):
    """Metrics of a case's held-out samples, whole and per source, the number of targets, and the first texts."""
    known = {}

    def metrics(name, *more):
        if (name, more) not in known:
            job = opened(last_wins([*cases[name], *more]))
            model = CLASSES[job.skeleton.task].from_pretrained(job.config.model.path).eval()
            parts = {part: seen(job, model, samples) for part, samples in job.corpus.samples("validation").parts.items()}
            told = judged(job.config.objective, list(parts.values()))
            for part, found in parts.items():
                told |= {f"{part}/{key}": value for key, value in judged(job.config.objective, [found]).items()} if part else {}
            first = next(iter(parts.values()))
            known[name, more] = told, sum(part.count for part in parts.values()), list(zip(first.texts, first.references, strict=True))
        return known[name, more]

    return metrics


def evaluate(cases, strategy, times=1):
    """On a rank: each case's evaluations."""
    launch, found = read_launch(os.environ), {}
    start_process_group(launch, torch.device("cpu"), 60)
    for name, arguments in cases.items():
        job = assembly.open_job(load(last_wins([*arguments, *layout(strategy)]), launch.world_size), launch)
        engine = assembly.build_engine(job)
        evaluator = assembly.build_evaluator(job, engine)
        found[name] = [evaluator.evaluate(3 + time) for time in range(times)]
        engine.close()
    return found


LAYOUTS = [("fsdp", 3)]
REST = [
    ("ddp", 2),
    ("single", 1),
    ("hsdp", 4),
    ("zero2", 2),
    ("zero3", 2),
    ("zero3", 3),
    ("fsdp", 1),
    ("fsdp", 2),
    ("ddp", 3),
    ("ddp", 4),
    ("fsdp", 4),
    ("tensor", 2),
    ("tensor x fsdp", 4),
    ("pipeline", 2),
    ("pipeline x fsdp", 4),
    ("3d", 4),
]


@pytest.mark.parametrize(("strategy", "ranks"), [*LAYOUTS, *(pytest.param(*layout, marks=pytest.mark.slow) for layout in REST)])
def test_any_number_of_ranks_says_what_one_pass_says(cases, by_hand, strategy, ranks):
    results = run_ranks(evaluate, ranks, cases, strategy, timeout=240)
    for name in cases:
        told, num_targets, texts = by_hand(name)
        for (found,) in (result[name] for result in results):
            assert found.metrics == pytest.approx(told, rel=2e-5, abs=1e-6), name
            assert (found.step, found.num_targets, list(found.examples)) == (3, num_targets, texts[:3]), name


def test_what_is_compared_is_worth_comparing(cases, by_hand):
    """Nothing is perfect or void, and the samples cannot be dealt out evenly."""
    for name, arguments in cases.items():
        told, _, texts = by_hand(name)
        shares = {key: value for key, value in told.items() if not key.endswith(("loss", "perplexity", "error")) and "/" not in key}
        assert all(0 < value < 1 for value in shares.values()), (name, shares)
        sizes = [len(samples) for samples in opened(arguments).corpus.samples("validation").parts.values()]
        assert sizes[0] >= NUM_SAMPLES and all(8 < size < NUM_SAMPLES for size in sizes[1:]), (name, sizes)
        assert {key.split("/")[0] for key in told if "/" in key} == ({"big", "small"} if "mix" in name else set())
        assert len(texts) == (NUM_WRITTEN if name.startswith("seq2seq") else 0)


@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_fewer_samples_than_ranks(cases, by_hand, ranks):
    """Most ranks hold nothing but copies, which count nowhere."""
    few = ("train.evaluate_samples=2", "train.evaluate_generate=1")
    names = ("masked_lm, padded", "seq2seq", "single_label", "multi_label", "span_corruption")
    results = run_ranks(evaluate, ranks, {name: [*cases[name], *few] for name in names}, "ddp", 2)
    for name in names:
        told, num_targets, texts = by_hand(name, *few)
        for first, second in (result[name] for result in results):
            assert first.metrics == pytest.approx(told, rel=2e-5, abs=1e-6), name
            assert first.num_targets == num_targets and list(first.examples) == texts
            assert (first.metrics, first.step, second.step) == (second.metrics, 3, 4), "and the next evaluation says the same"


def test_beams_are_searched_when_asked_for(cases, by_hand):
    (result,) = run_ranks(evaluate, 1, {"seq2seq": [*cases["seq2seq"], "sample.num_beams=3"]}, "single")
    told, _, _ = by_hand("seq2seq", "sample.num_beams=3")
    assert result["seq2seq"][0].metrics == pytest.approx(told, rel=2e-5, abs=1e-6)


def test_writing_nothing_tells_the_likelihood_only(cases):
    (result,) = run_ranks(evaluate, 1, {"seq2seq": [*cases["seq2seq"], "train.evaluate_generate=0"]}, "single")
    assert result["seq2seq"][0].metrics.keys() == {"loss", "perplexity"} and result["seq2seq"][0].examples == ()
