"""``python -m trainer COMMAND`` is ``isotrain COMMAND``."""

from trainer.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
