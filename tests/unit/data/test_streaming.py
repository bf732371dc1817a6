"""Reading while training: every record once an epoch over all ranks, from any place, and the same samples as a prepared corpus has."""

import json
import re
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from tests.unit.data.streamed import PACKED, PADDED, PAIRS, decoded, one_epoch, streamed, text_of, write_files
from trainer.data import blocks as blocks_module
from trainer.data.blocks import BadRecords, Blocks, Maker
from trainer.data.config import Data, TokenizerConfig
from trainer.data.prepare import prepare
from trainer.data.record_config import Hub
from trainer.data.shards import Dealer
from trainer.data.stream_config import Streamed
from trainer.data.stream_loader import StreamLoader
from trainer.data.streaming import open_streamed
from trainer.data.templates import BadRecord
from trainer.data.tokenizer import load_tokenizer, train_tokenizer
from trainer.errors import Refused
from trainer.types import Batch, Needs, Samples, Window


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer([f"text {number} of file" for number in range(100)], 300, folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("needs", [PACKED, PADDED], ids=["packed", "padded"])
def test_a_stream_goes_on_from_the_beginning_and_the_end_of_every_block(tmp_path, tokenizer, needs):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [20, 31, 8], bad=(3, 40)), max_bad=2)
    stream = open_streamed(config, needs).blocks(config, 3, 1, 2)

    def seen(state):
        return [
            (block.before, block.after, block.epoch, block.order.tolist(), block.samples.take(block.order).rows["text"].tokens.tolist())
            for block in islice(stream.behind(state), 12)
        ]

    whole = seen(None)
    assert {epoch for _, _, epoch, _, _ in whole} >= {0, 1}
    for place in range(9):
        for state in (whole[place][0], whole[place - 1][1] if place else None):
            assert seen(json.loads(json.dumps(state)))[: 12 - place] == whole[place:]


@pytest.mark.parametrize("shuffle", [0, 1, 7, 1000])
@pytest.mark.parametrize("size", [1, 3])
def test_every_record_is_a_padded_sample_once_an_epoch(tmp_path, tokenizer, shuffle, size):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [20, 31, 8, 9], bad=(3,)), shuffle_buffer=shuffle, max_bad=1)
    corpus = open_streamed(config, PADDED)
    expected = sorted(corpus.maker.tokenizer.decode(corpus.maker.tokenizer.encode(text_of(n)).ids[1:23]) for n in range(68) if n != 3)
    for epoch in range(2):
        texts = [text for rank in range(size) for text in decoded(corpus, one_epoch(config, corpus, rank, size, epoch))]
        assert sorted(texts) == expected
        assert (texts == [text_of(n) for n in range(68) if n != 3]) == (size == 1 and shuffle == 0)


def test_packed_rows_are_those_of_the_prepared_corpus(tmp_path, tokenizer):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [40]), shuffle_buffer=0)
    corpus = open_streamed(config, PACKED)
    prepared = prepare(streamed(tmp_path, tokenizer, tmp_path / "set", streaming=False, shuffle_buffer=1000), PACKED).samples("train")
    (block,) = one_epoch(config, corpus)
    assert len(prepared) - len(block.samples) == 1, "the last row is not full, and goes on in the next epoch"
    ours, theirs = (samples.take(np.arange(len(block.samples))).rows["text"] for samples in (block.samples, prepared))
    for name in ("tokens", "positions", "starts", "filled"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_small_blocks_pack_as_one_large_block_does(tmp_path, tokenizer, monkeypatch):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [40, 20]), shuffle_buffer=0)
    corpus, rows = open_streamed(config, PACKED), []
    for characters in (1 << 20, 30):
        monkeypatch.setattr(blocks_module, "_BLOCK_CHARACTERS", characters)
        found = one_epoch(config, corpus) + one_epoch(config, corpus, epoch=1)
        assert (len(found) > 30) == (characters == 30)
        texts = [block.samples.take(block.order).rows["text"] for block in found]
        rows.append({name: np.concatenate([getattr(text, name) for text in texts]) for name in ("tokens", "starts", "positions", "filled")})
    for name, expected in rows[0].items():
        assert np.array_equal(rows[1][name], expected), name
    assert rows[0]["filled"].min() == 9, "no slot is left empty, at the edge of an epoch neither"


def test_a_block_ends_when_its_records_are_long(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(blocks_module, "_BLOCK_CHARACTERS", 100)
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [60]), shuffle_buffer=1000)
    corpus = open_streamed(config, PADDED)
    found = one_epoch(config, corpus)
    assert max(sum(map(len, decoded(corpus, [block]))) for block in found) < 100 + len(text_of(3))
    assert sum(len(block.samples) for block in found) == 60


def test_both_texts_of_a_pair_stay_together(tmp_path, tokenizer):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": f"text {n}", "target": f"file {n}"}) + "\n" for n in range(30)))
    config = streamed(tmp_path, tokenizer, path)
    corpus = open_streamed(config, PAIRS)
    seen = set()
    for block in one_epoch(config, corpus):
        rows = block.samples.take(block.order).rows
        sources, targets = (
            [corpus.maker.tokenizer.decode(row[:filled].tolist()) for row, filled in zip(field.tokens, field.filled, strict=True)]
            for field in (rows["source"], rows["target"])
        )
        seen |= set(zip(sources, targets, strict=True))
    assert seen == {(f"text {n}", f"file {n}") for n in range(30)}


def to_batch(samples: Samples) -> Batch:
    rows = samples.rows["text"]
    return Batch(
        {"input_ids": torch.from_numpy(rows.tokens)}, torch.from_numpy(samples.epochs), {"targets": 1}, ids=torch.from_numpy(samples.ids)
    )


def loader(config, corpus, rank=0, size=1, state=None, widest=None, global_batch=10, micro_batch=4, ahead=False) -> StreamLoader:
    return StreamLoader(corpus.blocks(config, 3, rank, size), to_batch, global_batch, micro_batch, rank, size, widest, state, ahead=ahead)


@pytest.mark.parametrize("needs", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize(("size", "global_batch"), [(1, 10), (3, 10), (4, 3)])
def test_ids_are_unique_the_same_on_all_ranks_and_say_which_rank_had_the_sample(tmp_path, tokenizer, needs, size, global_batch):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [60] * 4))
    corpus = open_streamed(config, needs)
    steps = [list(loader(config, corpus, rank, size, global_batch=global_batch).steps(1, 20)) for rank in range(size)]
    everything = np.concatenate([ids for _, ids, _ in steps[0]])
    assert len(set(everything.tolist())) == everything.size == 20 * global_batch
    for one in zip(*steps, strict=True):
        assert all(np.array_equal(one[0][1], other[1]) for other in one)
        held = [np.concatenate([batch.ids.numpy() for batch in batches]) for _, _, batches in one]
        assert np.array_equal(np.concatenate([ids[ids >= 0] for ids in held]), one[0][1])
        assert all((ids[ids >= 0] % size == rank).all() for rank, ids in enumerate(held))
        assert len({len(batches) for _, _, batches in one}) == len({batch.ids.shape for _, _, batches in one for batch in batches}) == 1


@pytest.mark.parametrize("needs", [PACKED, PADDED], ids=["packed", "padded"])
def test_a_loader_goes_on_behind_every_step(tmp_path, tokenizer, needs):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [20, 13]))
    corpus = open_streamed(config, needs)

    def seen(first, state, ahead=False):
        current = loader(config, corpus, 1, 2, state, ahead=ahead)
        found = []
        for step, ids, batches in current.steps(first, 25):
            shown = [(batch.inputs["input_ids"].tolist(), batch.labels.tolist(), batch.ids.tolist()) for batch in batches]
            found.append((json.dumps(current.state), step, ids.tolist(), shown))
        return found

    whole = seen(1, None)
    assert whole[-1][3][0][1][0] > 0, "the run must cross an epoch's edge"
    assert seen(1, None, ahead=True) == whole, "what is made ahead is not behind the step that was given"
    for first in range(2, 26):
        assert seen(first, json.loads(whole[first - 2][0])) == whole[first - 1 :]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_steps_of_all_ranks_hold_every_record_once_an_epoch(tmp_path, tokenizer, size):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [20, 13, 25, 7], bad=(30,)), max_bad=1)
    corpus, seen = open_streamed(config, PADDED), []
    for rank in range(size):
        for _, _, batches in loader(config, corpus, rank, size).steps(1, 20):
            for batch in batches:
                rows = zip(batch.inputs["input_ids"].tolist(), batch.labels.tolist(), batch.ids.tolist(), strict=True)
                seen += [corpus.maker.tokenizer.decode(tokens) for tokens, epoch, id in rows if epoch == 1 and id >= 0]
    assert sorted(seen) == sorted(text_of(number) for number in range(65) if number != 30)


def test_padded_rows_of_a_step_are_as_wide_as_the_widest_of_all_ranks(tmp_path, tokenizer):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps({"text": "file " * (number // 20)}) + "\n" for number in range(1, 401)))
    config = streamed(tmp_path, tokenizer, path, shuffle_buffer=0, max_bad=19)
    corpus, told = open_streamed(config, PADDED), []

    def widest(widths):
        told.append(widths)
        return [{"text": 24} if number % 2 else width for number, width in enumerate(widths)]

    steps = list(loader(config, corpus, widest=widest).steps(1, 60))
    assert [len(one) for one in told] == [51, 9], "ranks need not speak of it at every step"
    own = [width["text"] for one in told for width in one]
    assert set(own) == {8, 16, 24}
    agreed = [24 if number % 51 % 2 else width for number, width in enumerate(own)]
    assert [batches[0].inputs["input_ids"].shape[1] for _, _, batches in steps] == agreed


def test_bad_records_are_counted_up_to_the_limit_in_each_epoch(tmp_path, tokenizer):
    path = write_files(tmp_path / "set", [30], bad=(3, 9, 25))
    config = streamed(tmp_path, tokenizer, path, max_bad=3)
    found = one_epoch(config, open_streamed(config, PADDED), epoch=1)
    assert found[-1].after["bad"] == {
        "count": 3,
        "first": "part-0.jsonl:4 (broken JSON: Expecting property name enclosed in double quotes at column 2)",
    }
    config.max_bad = 2
    corpus = open_streamed(streamed(tmp_path, tokenizer, path, max_bad=3), PADDED)
    with pytest.raises(Refused, match=r"more than data\.max_bad=2 bad records in this epoch, such as part-0\.jsonl:26"):
        one_epoch(config, corpus)


@pytest.mark.parametrize("too_long", ["truncate", "skip"])
def test_records_longer_than_their_row_are_counted_in_each_epoch(tmp_path, tokenizer, too_long):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps({"text": "file " * (40 if number in (3, 9, 25) else 2)}) + "\n" for number in range(30)))
    config = streamed(tmp_path, tokenizer, path, too_long=too_long)
    corpus = open_streamed(config, PADDED)
    for epoch in range(2):
        found = one_epoch(config, corpus, epoch=epoch)
        assert found[0].before["too_long"] == 0 and found[-1].after["too_long"] == 3
        assert sum(len(block.samples) for block in found) == (27 if too_long == "skip" else 30)
    assert next(corpus.blocks(config, 3, 0, 1).behind(found[2].before)).before["too_long"] == found[2].before["too_long"]


def test_a_count_of_bad_records_goes_on_where_it_was():
    first = BadRecords(3)
    for number in range(2):
        first.add(f"file:{number}", BadRecord("broken"))
    second = BadRecords(3, json.loads(json.dumps(first.state)))
    second.add("file:2", BadRecord("broken"))
    assert second.state == {"count": 3, "first": "file:0 (broken)"}
    with pytest.raises(Refused, match="file:3"):
        second.add("file:3", BadRecord("broken"))


@pytest.mark.parametrize("kind", ["files", "hub"])
def test_held_out_records_are_prepared_and_never_trained_on(tmp_path, tokenizer, kind):
    path = write_files(tmp_path / "set", [40])
    lines = (path / "part-0.jsonl").read_text().splitlines()
    (tmp_path / "held.jsonl").write_text("\n".join(lines[5:15]))
    config: Streamed = streamed(tmp_path, tokenizer, path, validation_fraction=0.01, validation_path=str(tmp_path / "held.jsonl"))
    if kind == "hub":
        (path / "test.jsonl").write_text("\n".join(lines[5:15]))
        (path / "part-0.jsonl").rename(path / "train.jsonl")
        config = Hub(name=str(path), validation_split="test", streaming=True, cache_dir=config.cache_dir, tokenizer=config.tokenizer)
    corpus = open_streamed(config, PADDED, quiet=True)
    held_out = corpus.samples("validation")
    assert len(held_out) == 10 and corpus.counts["validation"]["documents"] == 10
    decode = corpus.maker.tokenizer.decode
    rows = held_out.take(np.arange(10)).rows["text"]
    texts = {decode(row[:filled].tolist()) for row, filled in zip(rows.tokens, rows.filled, strict=True)}
    trained = decoded(corpus, one_epoch(config, corpus))
    assert len(trained) == 30 and not texts & set(trained)
    again = open_streamed(config, PADDED, quiet=True)
    assert again.texts == corpus.texts and len(again.texts) == 10


def test_without_held_out_records_there_is_nothing_to_evaluate(tmp_path, tokenizer):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [4]))
    for needs in (PACKED, PADDED):
        assert len(open_streamed(config, needs).samples("validation")) == 0


@pytest.mark.parametrize(
    ("changes", "needs", "words"),
    [
        ({"tokenizer": TokenizerConfig()}, PADDED, r"needs a tokenizer that exists.* data\.tokenizer\.path"),
        (
            {},
            Needs({"text": Window(8, 8)}, packs=False, label="class"),
            r"data\.streaming=true does not go with an objective that reads labels",
        ),
        ({"text": "txet"}, PADDED, r"data\.text=txet: .*part-0.jsonl:1\)? .*has no column txet.*did you mean data\.text=text"),
        ({"path": "nothing/here"}, PADDED, r"data\.path=nothing/here holds no JSON"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_begins(tmp_path, tokenizer, changes, needs, words):
    config = streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [4]))
    for key, value in changes.items():
        setattr(config, key, value)
    with pytest.raises(Refused, match=words):
        open_streamed(config, needs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation_fraction": 0.01}, r"set data\.validation_fraction=0, or name what is held out with data\.validation_path\."),
        ({"group_by_length": True}, r"leave data\.group_by_length out"),
        ({"workers": 2}, r"leave data\.workers=2 out"),
        ({"group": "n"}, r"data\.group has no effect"),
        ({"streaming": False}, r"data\.shuffle_buffer=7 has no effect without data\.streaming=true"),
    ],
)
def test_settings_that_do_not_go_with_streaming_are_each_refused(tmp_path, changes, words):
    assert list(streamed(tmp_path, "t", tmp_path).problems()) == []
    (problem,) = streamed(tmp_path, "t", tmp_path, **changes).problems()
    assert re.search(words, problem)


def test_preparing_does_not_prepare_a_set_that_is_to_be_streamed(tmp_path, tokenizer):
    with pytest.raises(Refused, match=r"data\.streaming=true is for training"):
        prepare(streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [4])), PADDED)


@pytest.mark.parametrize(
    ("sizes", "bad", "rank", "size", "changes"),
    [
        ([2], (), 2, 3, {}),
        ([3], (0, 1, 2), 0, 1, {"max_bad": 3}),
        ([4], (), 0, 1, {"too_long": "skip", "text": "long"}),
    ],
    ids=["fewer than ranks", "all bad", "all too long"],
)
def test_a_rank_without_anything_to_train_on_is_refused(tmp_path, tokenizer, sizes, bad, rank, size, changes):
    path = write_files(tmp_path / "set", sizes, bad)
    config = streamed(tmp_path, tokenizer, path, **{key: value for key, value in changes.items() if key != "text"})
    if "text" in changes:
        for file in path.iterdir():
            file.write_text(file.read_text().replace('"text": "', '"text": "' + "file " * 40))
    shards, _ = config.stream(PADDED)
    maker = Maker(*load_tokenizer(Path(tokenizer)), PADDED, False, config.too_long)
    stream = Blocks(Dealer(shards, rank, size, 0), maker, 0, 7, config.max_bad)
    with pytest.raises(Refused, match=f"Data rank {rank} of {size} has no record of .* to train on"):
        next(stream.behind(None))


def test_a_record_that_is_too_long_is_refused_where_that_is_asked_for(tmp_path, tokenizer):
    path = write_files(tmp_path / "set", [100])
    with (path / "part-0.jsonl").open("a") as file:
        file.write(json.dumps({"text": "file " * 40}) + "\n")
    config = streamed(tmp_path, tokenizer, path, too_long="refuse")
    with pytest.raises(Refused, match=r"1 of \d+ streamed records are longer than their row \(part-0\.jsonl:101\)"):
        one_epoch(config, open_streamed(config, PADDED))


def test_a_fingerprint_follows_files_columns_and_tokenizer_without_reading_them(tmp_path, tokenizer):
    path = write_files(tmp_path / "set", [20])

    def fingerprint(needs=PADDED, **changes):
        return open_streamed(streamed(tmp_path, tokenizer, path, **changes), needs).fingerprint

    found = [fingerprint(), fingerprint(text="{text} {n}"), fingerprint(PAIRS, source="text", target="text")]
    assert fingerprint(max_bad=9) == found[0]
    with (path / "part-0.jsonl").open("a") as file:
        file.write("\n")
    found.append(fingerprint())
    (path / "part-0.jsonl").rename(path / "part-1.jsonl")
    found.append(fingerprint())
    assert len(set(found)) == 5


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, tokenizer):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Refused, match=r"The cache folder .* Set data\.cache_dir"):
        open_streamed(streamed(tmp_path, tokenizer, write_files(tmp_path / "set", [4])), PADDED)


def test_other_corpora_do_not_stream():
    assert not any(issubclass(kind, Streamed) for kind in Data.__subclasses__() if kind is not Streamed)
