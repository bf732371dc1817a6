"""What recipes make of their packages: from small samples here, and (slow) from the real ones."""

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from trainer.errors import Refused
from trainer.recipes import debian, minilm, once, smollm2, vader
from trainer.recipes.once import RECORD

RATED = "1\t2.26\tThe Rock is destined to be the new ''Conan''.\r\n2\t-0.6\t Effective but\x85too tepid \r\n3\t0.0\tA film.\r\n\r\n"

STANZAS = """\
Package: 0ad
Description-md5: d943
Description-en: Real-time strategy game of ancient warfare
 0 A.D. is a free, open-source,
 real-time strategy game.
 .
 Features:
  * ancient   warfare
 .
 {long}

Package: 0ad-copy
Description-en: Another synopsis of the same text
 0 A.D. is a free, open-source,
 real-time strategy game.
 .
 Features:
  * ancient   warfare
 .
 {long}

Package: terse
Description-en: Three words only
 {long}

Package: small
Description-en: A synopsis with enough words
 Too short to be summarised.

Package: 0ad-data
Description-md5: 2658
Description-en: Real-time strategy game of ancient warfare (data files)
 0 A.D. is a free, open-source,
 real-time strategy game.
 .
 Data. {long}
"""
LONG = " ".join(f"word{number}" for number in range(60))


def records(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def ratings(tmp_path, monkeypatch) -> Path:
    """A cache into which somebody put the file that is pinned: a small sdist of the shape of the real one. pip is of no use."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for number, name in enumerate(vader.PARTS.values()):
            add(archive, f"hutto_ICWSM_2014/{name}", RATED.encode() * (number + 1))
    path = tmp_path / "cache" / vader.PACKAGE.filename
    path.parent.mkdir()
    with tarfile.open(path, mode="w:gz") as archive:
        add(archive, "vaderSentiment-3.3.2/LICENSE.txt", b"MIT")
        add(archive, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(vader, "PACKAGE", dataclasses.replace(vader.PACKAGE, sha256=digest))
    return path.parent


def test_ratings_become_sentences_with_labels():
    assert list(vader.parse(RATED.split("\n"))) == [
        {"text": "The Rock is destined to be the new ''Conan''.", "label": "positive", "score": 2.26},
        {"text": "Effective but\x85too tepid", "label": "negative", "score": -0.6},
        {"text": "A film.", "label": "negative", "score": 0.0},
    ]


def test_each_part_of_the_ratings_is_a_file_made_once(ratings):
    assert [record["label"] for record in records(vader.vader(ratings))] == ["positive", "negative", "negative"]
    (ratings / vader.PACKAGE.filename).unlink()
    assert [len(records(vader.vader(ratings, part))) for part in ("movie", "amazon", "nyt", "tweets")] == [3, 6, 9, 12]
    assert (ratings / "vader-3.3.2" / "LICENSE").read_text() == "MIT"


def test_a_part_that_is_not_there_is_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(Refused, match=r"no part 'books'; choose one of movie, amazon, nyt, tweets\."):
        vader.vader(tmp_path / "cache", "books")
    assert not (tmp_path / "cache").exists()


def test_descriptions_become_pairs_with_their_first_paragraph():
    pairs = list(debian.parse(STANZAS.format(long=LONG).splitlines(keepends=True)))
    first = "0 A.D. is a free, open-source, real-time strategy game."
    assert pairs == [
        {
            "document": f"{first} Features: * ancient warfare {LONG}",
            "summary": "Real-time strategy game of ancient warfare",
            "group": first,
        },
        {"document": f"{first} Data. {LONG}", "summary": "Real-time strategy game of ancient warfare (data files)", "group": first},
    ]


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Puts a program named apt-get where the real one was: it writes listings to where its configuration says, or fails."""

    def install(script: str) -> None:
        program = tmp_path / "bin" / "apt-get"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nlists=$(sed -n \'s/^Dir::State::lists "\\(.*\\)";$/\\1/p\' "$2")\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return install


def listing(num_packages: int) -> str:
    return "\n".join(
        f"Package: p{number}\nDescription-en: A tool that does {number}\n Number {number}. {LONG}\n" for number in range(num_packages)
    )


def test_descriptions_come_from_the_largest_listing_even_when_a_foreign_source_fails(tmp_path, apt):
    (tmp_path / "large").write_text(listing(1200))
    (tmp_path / "small").write_text(listing(1100))
    apt(f'cp {tmp_path}/large "$lists/a_main_i18n_Translation-en"; cp {tmp_path}/small "$lists/b_main_i18n_Translation-en"; exit 100')
    path = debian.debian_descriptions(tmp_path / "cache")
    assert len(records(path)) == 1200
    record = json.loads((path.parent / RECORD).read_text())
    digest = hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()
    assert record["source"] == {"file": "a_main_i18n_Translation-en", "sha256": digest, "pairs": 1200}
    assert record["files"]["descriptions.jsonl"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(item.name for item in path.parent.iterdir()) == ["descriptions.jsonl", RECORD], "apt's own files are gone"
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    assert debian.debian_descriptions(tmp_path / "cache") == path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'W: slow' >&2; echo 'E: Could not resolve deb.debian.org.' >&2; exit 100",
            r"descriptions \(Could not resolve deb.debian.org\)",
        ),
        ('cp "$2" "$lists/x_i18n_Translation-en"', r"hold 0 usable pairs, fewer than 1000"),
    ],
)
def test_an_apt_that_brings_nothing_is_told(tmp_path, apt, script, reason):
    apt(script)
    with pytest.raises(Refused, match=reason) as refusal:
        debian.debian_descriptions(tmp_path / "cache")
    (sentence,) = refusal.value.problems
    assert sentence.endswith(
        f"Make debian-descriptions on a machine with Debian or Ubuntu and a network, and copy that folder into {tmp_path}/cache."
    )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["debian-descriptions.lock"]


def test_an_apt_or_a_conversion_without_end_is_ended(tmp_path, apt, monkeypatch):
    monkeypatch.setattr(once, "PROGRAM_SECONDS", 0.3)
    apt("exec sleep 60")
    with pytest.raises(Refused, match=r"no package descriptions \(it was ended after 0\.3 seconds\)\. Make debian-descriptions on"):
        debian.debian_descriptions(tmp_path / "cache")
    monkeypatch.setattr(smollm2.sys, "executable", str(tmp_path / "bin" / "apt-get"))
    with pytest.raises(Refused, match=r"Converting w\.gguf failed \(it was ended after 0\.3 seconds\)\. Try where"):
        smollm2.convert(tmp_path / "w.gguf", tmp_path / "cache" / "set.building-7", tmp_path)


def test_a_machine_without_apt_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match=r"apt-get, which this machine does not have.*copy that folder into"):
        debian.debian_descriptions(tmp_path / "cache")


def test_the_tokenizer_neither_cuts_nor_pads_by_itself():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    plain = Tokenizer.from_str(json.dumps(minilm.plain_tokenizer(json.loads(tokenizer.to_str()))))
    assert [len(tokenizer.encode(text).ids) for text in ("a", "a " * 9)] == [4, 4]
    assert [len(plain.encode(text).ids) for text in ("a", "a " * 9)] == [1, 9]


@pytest.mark.slow
def test_a_conversion_that_fails_says_why_and_where_to_try(tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"no weights")
    folder = tmp_path / "cache" / "smollm2-135m-instruct.building-7"
    with pytest.raises(Refused, match=r"Converting broken\.gguf failed \(.+\)\. Try where 2 GB") as refusal:
        smollm2.convert(tmp_path / "broken.gguf", folder, tmp_path / "modules")
    assert f"copy the folder smollm2-135m-instruct into {tmp_path}/cache." in str(refusal.value)
    assert "gguf" in str(refusal.value).partition(")")[0].partition("(")[2].lower(), "the reader is not there"


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def fetch(recipe, cache: Path) -> Path:
    """The real thing; skips where there is no way to fetch it, and nowhere else."""
    try:
        path = recipe(cache)
    except Refused as refusal:
        reason = str(refusal)
        if "could not be downloaded" in reason or "apt-get fetched no" in reason or "does not have" in reason:
            pytest.skip(reason)
        raise
    return path


@pytest.mark.slow
def test_the_real_ratings(real_cache):
    rows = records(fetch(vader.vader, real_cache))
    assert Counter(row["label"] for row in rows) == {"positive": 5242, "negative": 5363}
    assert all(row["text"] and -4 <= row["score"] <= 4 for row in rows)
    assert [len(records(vader.vader(real_cache, part))) for part in ("amazon", "nyt", "tweets")] == [3708, 5190, 4200]


@pytest.mark.slow
def test_the_real_descriptions(real_cache):
    rows = records(fetch(debian.debian_descriptions, real_cache))
    assert len(rows) > 5000
    assert len({row["document"] for row in rows}) == len(rows)
    assert all(row["document"].startswith(row["group"]) and len(row["summary"].split()) >= 4 for row in rows)
    assert len({row["group"] for row in rows}) < 0.9 * len(rows), "sister packages share paragraphs"


@pytest.mark.slow
def test_the_real_encoder_knows_what_sentences_mean(real_cache):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = fetch(minilm.minilm, real_cache)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(["A man is eating food.", "A man eats a meal.", "The stock market crashed today."], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert means[0] @ means[1] == pytest.approx(0.908, abs=2e-3)
    assert abs(means[0] @ means[2]) < 0.05
    assert len(tokenizer("word " * 300, add_special_tokens=False)["input_ids"]) == 300


@pytest.mark.slow
def test_the_real_decoder_answers_without_its_reader(real_cache):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch(smollm2.smollm2_135m, real_cache)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.bfloat16 and not getattr(model, "is_quantized", False)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"], "digits alone, blanks before them whole"
    assert tokenizer.model_max_length == 8192
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert sorted(path.name for path in folder.glob("*.gguf")) == []
