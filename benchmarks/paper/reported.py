"""The paper's ImageNet table, as its authors report it; nothing of it was made
here.

The commands prune the same networks to the same share of the multiply-adds, with the
authors' settings, on a machine that has ImageNet. Where the paper does not say which
blocks make a number, the command asks for the share (--target).
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A line of the paper's table: top-1 in per cent, multiply-adds as it counts."""

    network: str
    method: str
    top1: str
    macs: str
    flags: str = ""


#: A dense ResNet34 has 3.66 G here and 3.68 G there, a MobileNetV2 301 M and 314 M.
ROWS = (
    Row("ResNet34", "dense", "73.4", "3.68 G"),
    Row("ResNet34", "i-SpaSP", "73.5", "2.69 G", "--preset paper"),
    Row(
        *("ResNet34", "i-SpaSP", "72.5", "2.13 G"),
        "--keep 1 'layer1.[12]=0.4' 'layer2.[123]=0.4' 'layer3.[1-5]=0.4' layer4.2=0.4",
    ),
    Row("ResNet34", "GFS", "73.5 / 72.9", "2.64 / 2.07 G"),
    Row("ResNet34", "multi-layer GFS", "73.5 / 73.3", "2.20 / 1.90 G"),
    Row("ResNet34", "filter pruning (L1)", "72.1", "2.79 G"),
    Row("ResNet34", "Rethinking", "72.0", "2.79 G"),
    Row("ResNet34", "More-is-less", "73.0", "2.75 G"),
    Row("ResNet34", "SFP", "71.8", "2.17 G"),
    Row("ResNet34", "FPGM", "72.5", "2.16 G"),
    Row("MobileNetV2", "dense", "72.0", "314 M"),
    Row("MobileNetV2", "i-SpaSP", "71.6", "260 M", "--preset paper"),
    Row(
        *("MobileNetV2", "i-SpaSP", "71.3", "242 M"),
        "--keep 1 features.6=0.1 features.9=0.1 'features.1[023]=0.1'",
    ),
    Row("MobileNetV2", "i-SpaSP", "70.7", "220 M", "--target macs=70%"),
    Row("MobileNetV2", "GFS", "71.9 / 71.6", "258 / 220 M"),
    Row("MobileNetV2", "multi-layer GFS", "72.2 / 71.7", "245 / 218 M"),
    Row("MobileNetV2", "LEGR", "71.4", "224 M"),
    Row("MobileNetV2", "uniform", "70.0", "220 M"),
    Row("MobileNetV2", "AMC", "70.8", "220 M"),
    Row("MobileNetV2", "MetaPruning", "71.2", "217 M"),
)


COLUMNS = {
    "reported by the paper": lambda row: row.network,
    "method": lambda row: row.method,
    "top-1": lambda row: row.top1,
    "multiply-adds": lambda row: row.macs,
    "flags": lambda row: row.flags and f"`{row.flags}`",
}
