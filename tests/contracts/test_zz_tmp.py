import pytest
from trainer.testing import train_curve
@pytest.mark.parametrize("strategy",["ddp","fsdp"])
@pytest.mark.parametrize("ranks",[3,4])
def test_prepared(tiny,tmp_path,ranks,strategy):
    a=[*tiny,f"strategy={strategy}","train.micro_batch=3"]
    whole=train_curve(a,tmp_path/"whole",ranks)
    train_curve([*a,"train.stop_after=4"],tmp_path/"run",ranks)
    run=train_curve(a,tmp_path/"run",ranks)
    assert [(l["loss"].hex(),l["grad_norm"].hex()) for l in run]==[(l["loss"].hex(),l["grad_norm"].hex()) for l in whole]
