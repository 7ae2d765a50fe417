"""Prune a network by i-SpaSP and save what is left of it.

python prune.py --model resnet34            digits; trains the dense network first
python prune.py --model tf_mobilenetv2 --weights FILE --data folder:DIR --preset paper
"""

from ispasp_jax.cli.prune import main

if __name__ == "__main__":
    raise SystemExit(main())
