"""``isotrain prepare --show``: what is printed is what the first step trains on, in colours on a terminal and in marks elsewhere."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from tokenizers import BertWordPieceTokenizer

from trainer import cli
from trainer.assembly import build_order, collator, open_job
from trainer.commands.show import show
from trainer.config import load
from trainer.data.order import step_draws
from trainer.data.tokenizer import load_tokenizer
from trainer.distributed.launch import Launch

TASKS = {
    "causal_lm": ["model=llama_tiny"],
    "masked_lm": ["objective=masked_lm", "objective.probability=0.4", "objective.masked=0.5", "objective.random=0.3", "model=bert_tiny"],
    "padded": ["objective=masked_lm", "model=bert_tiny", "data.packing=false"],
    "span_corruption": ["objective=span_corruption", "model=t5_tiny"],
}
RECORDS = {
    "seq2seq": ["objective=seq2seq", "model=t5_tiny", "data.target_length=16"],
    "classification": ["objective=classification", "model=bert_tiny"],
    "multi_label": ["objective=classification", "objective.kind=multi_label", "model=bert_tiny", "data.label=tags"],
    "regression": ["objective=classification", "objective.kind=regression", "model=bert_tiny", "data.label=number"],
}
SIZE = ["train.global_batch=3", "run.quiet=true"]


def job_of(arguments):
    return open_job(load([*arguments, "run.device=cpu"], 1), Launch())


def shown_in(job, number=3, **console):
    written = io.StringIO()
    show(replace(job, console=Console(file=written, width=100, **console)), number)
    return written.getvalue()


def parts(printed):
    """Heading and body of each sample, and the legend."""
    *samples, last = re.split(r"\n(?=sample \d)", printed)[1:]
    body, _, legend = last.rpartition("\n\n")
    return [sample.split("\n", 1) for sample in [*samples, body]], legend


def first_step(job, number=3):
    """The samples of the first step as the loader takes them."""
    samples = job.corpus.samples("train")
    draws = step_draws(build_order(job.config, samples), 1, 1, job.config.train.global_batch)
    return samples.take(draws.ids[0], draws.epochs[0], samples.widths(draws.ids[0]))


def bare(text):
    """Text without what marks may change: white space, and the signs for it."""
    return re.sub(r"[\s⏎⇥·]", "", text)


def raw(job, rows, row, first=0):
    tokenizer, _ = load_tokenizer(job.corpus.tokenizer_folder)
    return tokenizer.decode(rows.tokens[row, first : rows.filled[row]].tolist(), skip_special_tokens=False)


def unmarked(body, keep):
    """What was there, with marks and borders taken away; ``keep`` is the side of an arrow: 1 seen, 2 truth."""
    body = re.sub(r"^╌╌.*$", "", body, flags=re.MULTILINE)
    body = re.sub(r"\{(?!=)([^{}→]*)→([^{}]*)\}", rf"\{keep}", body)
    return re.sub(r"[«»]", "", re.sub(r"\{=([^{}]*)\}", r"\1", body))


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "padded"])
def test_the_samples_of_the_first_step_are_shown_in_its_order(name, tiny_data, capsys):
    arguments = [*tiny_data, *TASKS[name], *SIZE]
    assert cli.main(["prepare", *arguments, "--show", "3"]) == 0
    job, printed = job_of(arguments), capsys.readouterr().out
    assert printed.startswith("documents" if name != "padded" else "records")
    samples, _ = parts(printed)
    taken = first_step(job)
    for row, (heading, body) in enumerate(samples):
        assert heading.startswith(f"sample {row + 1}  number {taken.ids[row]:,}, ")
        assert bare(unmarked(body, keep=2)) == bare(raw(job, taken.rows["text"], row))


def test_masks_are_those_of_the_first_step(tiny_data):
    job = job_of([*tiny_data, *TASKS["masked_lm"], *SIZE])
    printed = shown_in(job)
    samples, legend = parts(printed)
    taken = first_step(job)
    batch, (tokenizer, _) = collator(job)(taken), load_tokenizer(job.corpus.tokenizer_folder)
    for row, (heading, body) in enumerate(samples):
        assert bare(unmarked(body, keep=1)) == bare(tokenizer.decode(batch.inputs["input_ids"][row].tolist(), skip_special_tokens=False))
        assert f"{((batch.places // 32) == row).sum()} predicted" in heading
    assert "<|mask|>→" in printed and "{=" in printed
    for meaning in ("hidden, and what was there", "replaced, and what was there", "left as it is, and predicted", "another document"):
        assert meaning in legend


def test_spans_are_left_out_and_written(tiny_data):
    printed = shown_in(job_of([*tiny_data, *TASKS["span_corruption"], *SIZE]))
    samples, legend = parts(printed)
    for _, body in samples:
        reads, writes = body.removeprefix("reads\n").split("\nwrites\n")
        marks = re.findall(r"<extra_id_\d+>", reads)
        assert marks == re.findall(r"<extra_id_\d+>", writes) != []
        assert writes.startswith("  «<|pad|>»<extra_id_0>") and writes.rstrip().endswith("<|eos|>")
    assert "<extra_id_0>  stands for a left-out span" in legend and "hidden" not in legend


def test_source_and_target(record_data):
    arguments = [*(item for item in record_data if "target_length" not in item), *RECORDS["seq2seq"], *SIZE]
    job = job_of(arguments)
    samples, _ = parts(shown_in(job))
    taken = first_step(job)
    for row, (heading, body) in enumerate(samples):
        reads, writes = body.removeprefix("reads\n").split("\nwrites\n")
        assert bare(reads) == bare(raw(job, taken.rows["source"], row))
        assert bare(writes.replace("«<|pad|>»", "")) == bare(raw(job, taken.rows["target"], row))
        assert f"writes {taken.rows['target'].filled[row]} of " in heading


@pytest.mark.parametrize("name", ["classification", "multi_label", "regression"])
def test_labels_are_named(name, record_data):
    job = job_of([*(item for item in record_data if "target_length" not in item), *RECORDS[name], *SIZE])
    samples, _ = parts(shown_in(job) + "\n\n")
    taken = first_step(job)
    for row, (_, body) in enumerate(samples):
        said, label = re.search(r"^label (.*)$", body, re.MULTILINE)[1], taken.labels[row]
        if name == "classification":
            assert said == job.corpus.labels[label]
        elif name == "multi_label":
            assert said == ", ".join(tag for tag, has in zip(job.corpus.labels, label, strict=True) if has) or said == "(none)"
        else:
            assert float(said) == pytest.approx(label, rel=1e-5)


def test_sources_of_a_mix_are_named(corpus_folder, record_data, tmp_path):
    path = next(item for item in record_data if item.startswith("data.path=")).partition("=")[2]
    mix = [
        "data.parts.code.kind=text",
        f"data.parts.code.path={corpus_folder}",
        "data.parts.lines.kind=jsonl",
        f"data.parts.lines.path={path}",
    ]
    common = [
        "data.sequence_length=32",
        "data.tokenizer.vocab_size=512",
        f"data.cache_dir={tmp_path}",
        "train.global_batch=4",
        "run.quiet=true",
    ]
    job = job_of(["data=mix", *mix, *common])
    samples, _ = parts(shown_in(job, 4))
    ends = len(job.corpus.samples("train").parts["code"])
    wanted = ["code" if id < ends else "lines" for id in first_step(job).ids]
    assert [re.search(r", from (\w+)", heading)[1] for heading, _ in samples] == wanted
    assert sorted(wanted) == ["code", "code", "lines", "lines"]


def test_more_samples_than_a_step_holds_come_from_the_next_steps(tiny_data):
    arguments = [*tiny_data, *TASKS["masked_lm"], "run.quiet=true"]
    few, many = (shown_in(job_of([*arguments, f"train.global_batch={size}"]), 5) for size in (2, 5))
    assert few == many and few.count("\nsample ") == 5


def test_a_terminal_gets_colours_and_no_marks(tiny_data, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    job = job_of([*tiny_data, *TASKS["masked_lm"], *SIZE])
    printed = shown_in(job, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[[\d;]*35m(<\|mask\|>)+\x1b", printed), "masks are magenta"
    assert re.search(r"\x1b\[[\d;]*32m[^\x1b]+\x1b", printed), "what was there is green"
    assert re.search(r"\x1b\[[\d;]*9;31m|\x1b\[[\d;]*31m", printed), "what is wrong is red"
    assert "{=" not in printed and "«" not in printed
    causal = shown_in(job_of([*tiny_data, *TASKS["causal_lm"], *SIZE]), force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[2m[^\x1b]+", causal), "what is not predicted is dim"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "{=" in shown_in(job, force_terminal=True)


def test_characters_of_several_tokens_stay_whole_and_controls_become_visible(tmp_path):
    text = "žluťoučký kůň 日本語 \x1b[31m \x07 \x9b end"
    (tmp_path / "lines.txt").write_text("\n".join([text] * 50), encoding="utf-8")
    data = ["data=text", f"data.path={tmp_path / 'lines.txt'}", "data.document=line", "data.packing=false", "data.validation_fraction=0"]
    job = job_of([*data, "data.tokenizer.vocab_size=300", f"data.cache_dir={tmp_path / 'cache'}", *SIZE])
    printed = shown_in(job)
    assert "žluťoučký kůň 日本語 ␛[31m ␇ \N{REPLACEMENT CHARACTER} end" in printed
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", printed)


def test_wordpiece_is_shown_with_its_spaces(tmp_path):
    words = ["the", "quick", "brown", "foxes", "jumped", "over", "the", "laziest", "of", "all", "dogs"]
    (tmp_path / "text.txt").write_text("\n".join(" ".join(words[i:] + words[:i]) for i in range(len(words))))
    own = tmp_path / "tokenizer"
    own.mkdir()
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator((tmp_path / "text.txt").read_text().splitlines(), vocab_size=70, show_progress=False)
    trained.save(str(own / "tokenizer.json"))
    data = ["data=text", f"data.path={tmp_path / 'text.txt'}", "data.document=line", "data.validation_fraction=0", "data.packing=false"]
    more = ["objective=masked_lm", "objective.probability=0.3", "objective.masked=1", "objective.random=0", "model=bert_tiny"]
    job = job_of([*data, *more, f"data.tokenizer.path={own}", f"data.cache_dir={tmp_path / 'cache'}", *SIZE])
    samples, _ = parts(shown_in(job))
    for _, body in samples:
        told = unmarked(body, keep=2).removeprefix("[CLS]").strip().removesuffix("[SEP]").split()
        turned = words.index(told[0]) if told[0] != "the" else next(i for i in (0, 6) if words[i:] + words[:i] == told)
        assert told == words[turned:] + words[:turned]


def test_a_streamed_set_is_shown_as_it_comes(record_data, tmp_path, tiny_data):
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"text": f"record {number} of the stream"}) + "\n" for number in range(40)))
    tokenizer = job_of([*tiny_data, *SIZE]).corpus.tokenizer_folder
    data = ["data=jsonl", f"data.path={tmp_path / 's.jsonl'}", "data.streaming=true", "data.shuffle_buffer=0", "data.validation_fraction=0"]
    job = job_of([*data, "data.packing=false", f"data.tokenizer.path={tokenizer}", f"data.cache_dir={tmp_path / 'cache'}", *SIZE])
    samples, _ = parts(shown_in(job, 4))
    assert [re.search(r"record (\d+) of", body)[1] for _, body in samples] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "--show", "x"], "--show x is not a number of samples: did you mean --show 3?"),
        (["prepare", "--show", "0"], "--show 0 is not a number of samples: did you mean --show 3?"),
        (["train", "--show", "2"], "--show shows samples of a prepared corpus: isotrain prepare --show 2"),
        (["generate", "--show", "2", "checkpoint=x"], "isotrain prepare --show 2"),
    ],
)
def test_a_wrong_flag_is_refused(arguments, said, capsys):
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err
