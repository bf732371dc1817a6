"""Slots, labels and the use of a device's peak, from shapes alone."""

from types import SimpleNamespace

import pytest
import torch

from trainer.callbacks.throughput import Throughput, peak_fact, peak_of
from trainer.model.flops import Flops

FLOPS = Flops(slot=1000, target_slot=2000, label=300, pair=10, target_pair=20, cross_pair=5, causal=True)


def batch(rows, width, target_width=0):
    inputs = {"input_ids": torch.zeros(rows, width)} | ({"decoder_input_ids": torch.zeros(rows, target_width)} if target_width else {})
    return SimpleNamespace(inputs=inputs)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_peaks_go_by_the_whole_name(device, peak):
    assert peak_of(device, "bf16") == peak
    assert peak_of(device, "fp32") is None
    assert (peak_fact(device, "bf16") is None) == (peak is None)


def test_an_interval_is_the_sum_of_its_steps():
    """Two data ranks of 2 x 2 rows each, three of which are fillers: 5 samples; slots count what is computed, arithmetic what there is."""
    meter = Throughput(FLOPS, global_batch=5, data_size=2, world_size=4, peak=1e6)
    for width in (8, 16):
        meter.add([batch(2, width), batch(2, width)])
    speed = meter.read(labels=50, seconds=2.0)
    full = sum(5 * (width * 1000 + width * width * 10) for width in (8, 16)) + 50 * 300
    causal = full - sum(5 * width * width * 10 for width in (8, 16)) / 2
    assert speed == {
        "tokens_per_second": 25.0,
        "slots_per_second": 8 * 24 / 2,
        "mfu": pytest.approx(full / (2 * 4 * 1e6)),
        "mfu_causal": pytest.approx(causal / (2 * 4 * 1e6)),
    }
    meter.add([batch(3, 8, 4)])
    assert meter.read(10, 1.0)["slots_per_second"] == 6 * 12, "from nothing again, and a decoder's slots too"


def test_a_share_of_more_than_all_is_an_error_and_no_number(caplog):
    meter = Throughput(FLOPS, 4, 1, 1, peak=1.0)
    meter.add([batch(4, 8)])
    speed = meter.read(8, 1.0)
    assert speed["mfu"] is None and speed["mfu_causal"] is None and "please report it" in caplog.text


def test_without_a_peak_there_is_no_share():
    meter = Throughput(FLOPS, 4, 1, 1, peak=None)
    meter.add([batch(4, 8)])
    assert meter.read(8, 1.0)["mfu"] is None
