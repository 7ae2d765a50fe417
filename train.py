"""Train a dense network and save it as a model folder.

python train.py --model resnet34            digits, 10 epochs
python train.py --model resnet20 --data npz:cifar10.npz --epochs 90
"""

from ispasp_jax.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
