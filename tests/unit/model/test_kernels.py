"""Which kernel attends: the best that device, model and batches have, or the one that was asked for, or why not."""

from dataclasses import replace

import pytest
import torch

from tests.contracts.test_planned import folder_of
from tests.unit.objective.corpora import VOCABULARY
from tests.unit.objective.pairs import MODELS, model_of
from trainer.model import documents
from trainer.model.kernels import choose
from trainer.model.pretrained import FromConfig
from trainer.model.skeleton import build_skeleton

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
TASKS = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "masked_lm", "roberta": "masked_lm", "t5": "seq2seq", "bart": "seq2seq"}


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(documents, "varlen_tried", lambda device: None)


def chosen(model, asked=None, device=CUDA, compute="bf16", recompute=None, apart=True, task=None):
    model = MODELS[model] if isinstance(model, str) else model
    task = task or TASKS[model.build_config(VOCABULARY).model_type]
    return choose(asked, build_skeleton(model, task, VOCABULARY, model.fetch()), device, compute, recompute, apart)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_varlen_is_the_best_where_it_is(family):
    assert chosen(family) == ("varlen", None)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {"device": CPU}),
        ("llama", {"compute": "fp32"}),
        ("llama", {"apart": False}),
        ("t5", {}),
        ("bart", {}),
        (replace(MODELS["llama"], attention="eager"), {}),
        (replace(MODELS["bert"], dropout=0.1), {}),
        (replace(MODELS["llama"], hidden_size=48, num_heads=4, num_kv_heads=2), {}),
    ],
    ids=str,
)
def test_where_it_is_not_sdpa_is(family, more):
    assert chosen(family, **more) == ("sdpa", None)


def test_an_older_gpu_has_no_varlen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert chosen("llama") == ("sdpa", None)
    assert "8.0 or more, not a Tesla T4" in chosen("llama", "varlen")[1]


def test_a_torch_whose_varlen_takes_less_is_not_called(monkeypatch):
    monkeypatch.setattr(
        "torch.nn.attention.varlen.varlen_attn", lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=None: None
    )
    assert chosen("llama") == ("sdpa", None)
    assert "install torch 2.13" in chosen("llama", "varlen")[1]


@pytest.mark.parametrize(
    ("family", "asked", "more", "why"),
    [
        ("llama", "varlen", {"device": CPU}, "is a kernel for CUDA: set it to sdpa"),
        ("llama", "flex", {"device": CPU}, "has no backward on a CPU: set it to sdpa"),
        ("llama", "varlen", {"compute": "fp32"}, "not in fp32: set precision=bf16, or train.attention=flex"),
        ("llama", "flex", {"recompute": "selective"}, "use full, or train.attention=varlen"),
        ("t5", "varlen", {}, "a T5 looks from one sequence at another"),
        ("bart", "flex", {}, "a BART looks from one sequence at another"),
        (replace(MODELS["bert"], dropout=0.1), "flex", {}, "the model has attention_probs_dropout_prob=0.1"),
        (replace(MODELS["gpt2"], dropout=0.1), "varlen", {}, "the model has attn_pdrop=0.1"),
        (replace(MODELS["llama"], hidden_size=48, num_heads=4, num_kv_heads=2), "varlen", {}, "and the model's are 12"),
        ("gpt2", "flex", {}, "transformers does not have it for a GPT-2"),
        ("llama", "flex", {}, "at least 16 wide, and the model's are 8"),
        (replace(MODELS["llama"], attention="eager"), "sdpa", {}, "model.attention=eager is another attention"),
    ],
    ids=str,
)
def test_what_was_asked_for_and_cannot_be_is_told(family, asked, more, why):
    kernel, problem = chosen(family, asked, **more)
    assert kernel == "sdpa" and problem.startswith(f"train.attention={asked}: ") and why in problem
    assert problem.endswith(".") and problem.count(". ") == 0


def test_what_was_asked_for_and_can_be_is_given():
    assert chosen("llama", "sdpa", device=CPU, compute="fp32") == ("sdpa", None)
    assert chosen("llama", "varlen", apart=False) == ("varlen", None)
    wide = replace(MODELS["llama"], hidden_size=64)
    assert chosen(wide, "flex", compute="fp32") == ("flex", None)


@pytest.mark.parametrize(("kind", "window", "kernel"), [("gemma", None, "varlen"), ("olmo2", None, "varlen"), ("ministral", 6, "sdpa")])
def test_decoders_in_no_list_of_ours_have_it_unless_they_have_windows(tmp_path, kind, window, kernel):
    folder = folder_of(kind, tmp_path / "model", sliding_window=window)
    assert chosen(FromConfig(path=folder), task="causal_lm") == (kernel, None)


def test_an_encoder_decoder_is_left_to_sdpa(tmp_path):
    assert chosen(model_of("encoder-decoder", tmp_path), task="seq2seq") == ("sdpa", None)


def test_a_kernel_that_does_not_do_what_it_should_is_not_taken(monkeypatch):
    """Torch's own on a CPU, with the formulas where its kernels would be: right, then deaf to documents, then failing."""
    from tests.contracts import varlen_on_cpu

    monkeypatch.undo()
    varlen_on_cpu.install()
    tried = documents.varlen_tried.__wrapped__
    assert tried(CPU) is None
    right = documents.as_mask
    monkeypatch.setattr(documents, "as_mask", lambda told, longest: right(told[[0, 2]], 16))
    assert "off what SDPA computes" in tried(CPU)
    monkeypatch.setattr(documents, "as_mask", lambda told, longest: right(told, 1))
    assert tried(CPU).startswith("fails (AssertionError")


def test_what_was_tried_in_vain_is_said_to_who_asked_for_it(monkeypatch):
    monkeypatch.setattr(documents, "varlen_tried", lambda device: "fails (RuntimeError: no kernel image)")
    assert chosen("llama") == ("sdpa", None)
    assert chosen("llama", "varlen")[1].startswith(
        "train.attention=varlen: tried on this NVIDIA H100, its kernel fails (RuntimeError: no kernel"
    )
