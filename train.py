"""Train a transformer: ``python train.py --help``, ``torchrun --nproc-per-node 2 train.py +strategy=fsdp``."""

import trainer

if __name__ == "__main__":
    raise SystemExit(trainer.main())
