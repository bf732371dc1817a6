"""Text from a model: greedy, sampled, stopped."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.data.tokenizer import train_tokenizer
from trainer.errors import Refused
from trainer.model.decoders import Gpt2, Llama
from trainer.model.generation import generate_text
from trainer.types import Vocabulary

PROMPT = "def add"
GREEDY = {"temperature": 0.0, "top_k": None, "top_p": 1.0, "num_beams": 1, "seed": 0}
POSITIONS = 48


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(["def add(a, b):\n    return a + b\n", "import os\nprint(os.name)\n"], 300, folder)
    return AutoTokenizer.from_pretrained(folder)


def vocabulary(tokenizer):
    return Vocabulary(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, "")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tokenizer):
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": POSITIONS, "initializer_range": 0.4}
    config = (Llama if request.param == "llama" else Gpt2)(**shape).build_config(vocabulary(tokenizer))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def text_of(model, tokenizer, prompt=PROMPT, max_new_tokens=20, **more):
    return generate_text(model, tokenizer, prompt, max_new_tokens, **{**GREEDY, **more})


@torch.no_grad()
def by_hand(model, tokenizer, prompt, number):
    """The likeliest token, again and again, without a cache."""
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    for _ in range(number):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_greedy_is_the_likeliest_token_again_and_again(model, tokenizer, prompt):
    (text,) = text_of(model, tokenizer, prompt)
    assert text == by_hand(model, tokenizer, prompt, 20) and text.startswith(prompt) and len(text) > len(prompt)
    assert text_of(model, tokenizer, prompt, seed=9) == [text], "greedy draws nothing"


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}])
def test_sampling_from_one_token_is_greedy(model, tokenizer, narrow):
    assert text_of(model, tokenizer, temperature=1.5, **narrow) == text_of(model, tokenizer)


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_is_not(model, tokenizer):
    greedy = text_of(model, tokenizer)
    assert text_of(model, tokenizer, temperature=1e-4) == greedy
    assert text_of(model, tokenizer, temperature=5.0) != greedy


def test_sampling_repeats_with_its_seed_and_leaves_the_callers_state_alone(model, tokenizer):
    state = torch.get_rng_state()
    first = text_of(model, tokenizer, temperature=2.0, num_samples=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    assert text_of(model, tokenizer, temperature=2.0, num_samples=3, seed=1) == first and len(set(first)) == 3
    assert text_of(model, tokenizer, temperature=2.0, num_samples=3, seed=2) != first
    torch.set_rng_state(state)


def test_top_k_samples_among_the_likeliest(model, tokenizer):
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False)]])
    with torch.no_grad():
        likeliest = model(ids).logits[0, -1].topk(3).indices.tolist()
    wanted = {tokenizer.decode([*ids[0].tolist(), token], skip_special_tokens=True) for token in likeliest}
    found = set(text_of(model, tokenizer, max_new_tokens=1, temperature=9.0, top_k=3, num_samples=60))
    assert found == wanted
    assert len(set(text_of(model, tokenizer, max_new_tokens=1, temperature=9.0, num_samples=60))) > 10


def always(tokenizer, token):
    """A model whose likeliest token is always the same."""
    config = Gpt2(num_layers=1, hidden_size=8, num_heads=1, max_positions=POSITIONS).build_config(vocabulary(tokenizer))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[token] = 9.0
    return model


def test_the_end_of_the_document_ends_the_text(tokenizer):
    (letter,) = tokenizer.encode("x", add_special_tokens=False)
    assert text_of(always(tokenizer, letter), tokenizer) == [PROMPT + "x" * 20]
    stops = always(tokenizer, tokenizer.eos_token_id)
    lengths = []
    generate = stops.generate
    stops.generate = lambda *arguments, **keywords: lengths.append(generate(*arguments, **keywords)) or lengths[-1]
    assert text_of(stops, tokenizer) == [PROMPT]
    assert lengths[0].shape[1] == 1 + len(tokenizer.encode(PROMPT, add_special_tokens=False)) + 1, "bos, prompt, eos, and no more"


@pytest.mark.parametrize("number", [1, 7])
def test_no_more_tokens_than_asked_for(tokenizer, number):
    (letter,) = tokenizer.encode("x", add_special_tokens=False)
    assert text_of(always(tokenizer, letter), tokenizer, max_new_tokens=number) == [PROMPT + "x" * number]


def test_text_ends_where_the_models_positions_end(tokenizer):
    (letter,) = tokenizer.encode("x", add_special_tokens=False)
    (text,) = text_of(always(tokenizer, letter), tokenizer, prompt="", max_new_tokens=1000)
    assert text == "x" * (POSITIONS - 1), "one position is the first token's"
    with pytest.raises(Refused, match=rf"prompt has {POSITIONS + 53} tokens, but the model has {POSITIONS} positions: shorten it"):
        text_of(always(tokenizer, letter), tokenizer, prompt="0" * 100)


def test_a_tokenizer_without_a_first_token_begins_after_the_end_of_another_document(tokenizer, model):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.bos_token = None
    with torch.no_grad():
        expected = int(model(torch.tensor([[bare.eos_token_id]])).logits[0, -1].argmax())
    assert text_of(model, bare, prompt="", max_new_tokens=1) == [bare.decode([expected], skip_special_tokens=True)]
    bare.eos_token = None
    with pytest.raises(Refused, match="prompt is empty"):
        text_of(model, bare, prompt="")
