"""Options that are for speed or memory change no curve on a GPU either."""

import pytest

from trainer.testing import assert_same_curve, train_curve

CUDA = "run.device=cuda"
FAMILIES = ["llama", "gpt2", "bert", "t5"]


@pytest.mark.parametrize(("precision", "loss", "grad_norm"), [("fp32", 1e-4, 1e-3), ("bf16", 1e-2, 5e-2)])
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_blocks_have_the_curve_of_eager_ones(curve, name, precision, loss, grad_norm):
    job = (CUDA, f"precision={precision}")
    assert_same_curve(curve(name, *job, "train.compile=true"), curve(name, *job), loss=loss, grad_norm=grad_norm)


@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "flex"])
def test_blocks_compile_with_every_attention(curve, kernel):
    job = (CUDA, "precision=bf16", "model.num_heads=2", f"train.attention={kernel}")
    assert_same_curve(curve("llama", *job, "train.compile=true"), curve("llama", *job), loss=1e-2, grad_norm=5e-2)


@pytest.mark.parametrize(("precision", "loss", "grad_norm"), [("fp32", 1e-5, 1e-4), ("bf16", 1e-2, 5e-2)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_chunked_head_has_the_curve_of_a_dense_one(curve, name, precision, loss, grad_norm):
    job = (CUDA, f"precision={precision}")
    assert_same_curve(curve(name, *job, "train.cross_entropy=chunked"), curve(name, *job), loss=loss, grad_norm=grad_norm)


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_moments_have_the_curve_that_they_have_on_the_cpu(curve, name):
    job = ("precision=fp32", "optimizer.moments=bf16")
    assert_same_curve(curve(name, *job, CUDA), curve(name, *job, "run.device=cpu"), loss=1e-3, grad_norm=1e-2)


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_a_run_goes_on_from_what_was_written_in_the_background(task, tmp_path, curve, strategy):
    """The checkpoint holds the step that it is of, though training went on while it was written."""
    job = (CUDA, f"+strategy={strategy}")
    run = [*task("llama"), *job, "checkpoint.background=true", "checkpoint.every=3"]
    train_curve([*run, "train.stop_after=7"], tmp_path / "run")
    assert_same_curve(train_curve(run, tmp_path / "run"), curve("llama", *job), loss=1e-5, grad_norm=1e-4)
