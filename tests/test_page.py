"""The page of a run: everything that the report says, and nothing from elsewhere."""

import html.parser
import re

import numpy as np
import pytest

from ispasp_jax.report import page
from ispasp_jax.walk import Curve

REPORT = {
    "model": "resnet20",
    "method": "obs",
    "data": "digits",
    "seed": 0,
    "device": "2 CPU cores",
    "versions": {"ispasp_jax": "0.2.0", "jax": "0.10.2"},
    "stages": [
        {"stage": "dense", "top1": 0.9150, "loss": 0.38, "seconds": 0.1},
        {"stage": "pruned", "top1": 0.8725, "loss": 0.51, "seconds": 8.0},
    ],
    "seconds": {"selection": 8.0, "total": 9.5, "dense_passes": {"selection": 1.5}},
    "groups": [
        {"name": "layer1.0", "width": 16, "kept": 4, "relative_residual": 0.25},
        {"name": "layer1.1", "width": 16, "kept": 8, "relative_residual": None},
        {"name": "layer2.0", "width": 32, "kept": 24, "relative_residual": 0.125},
    ],
    "dense": {
        **{"params": 1000, "macs": 4000, "latency_ms": 3.0, "batch_size": 32},
        "macs_by_part": {"conv1": 400, "layer1": 2000, "layer2": 1600},
    },
    "pruned": {
        **{"params": 500, "macs": 1000, "latency_ms": 1.5, "batch_size": 32},
        "macs_by_part": {"conv1": 400, "layer1": 250, "layer2": 350},
    },
    "notes": ["<script>alert('no')</script> & more"],
    "command": "python prune.py --model resnet20 --keep 'layer1.*=0.5'",
}
VOID = {"meta", "line", "rect", "polyline", "circle"}


class Balanced(html.parser.HTMLParser):
    """Every tag is closed in its turn; what text there is."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def curve(d):
    losses = np.linspace(1, 0, d + 1) ** 2
    return Curve(losses, losses, np.arange(d))


@pytest.mark.parametrize("measured", [False, True])
def test_the_page_says_what_the_report_says(measured):
    curves = {g["name"]: curve(g["width"]) for g in REPORT["groups"]}
    made = page.html(REPORT, curves if measured else None)
    parsed = Balanced()
    parsed.feed(made)
    assert not parsed.open
    text = " ".join(" ".join(parsed.text).split())
    for said in (
        *("91.50 %", "87.25 %", "25.0 %", "50.0 %", "1,000 of 4,000", "4 / 16"),
        *("layer1.1", "37.5 %", "75.0 %", REPORT["notes"][0], REPORT["command"]),
        *("conv1 – – – 400 400 100.0 %", "layer1 32 12 37.5 % 2,000 250 12.5 %"),
    ):
        assert said in text, said
    tags = [tag for tag, _ in parsed.seen]
    assert "script" not in tags and tags.count("polyline") == 3 * measured
    assert tags.count("rect") == 2 and tags.count("circle") == 3 * measured
    assert not re.search(r"(src|href)=|url\(|@import|https?:", made)
    if measured:  # the dot lies on its line
        (points,) = [a["points"] for t, a in parsed.seen if t == "polyline"][:1]
        dot = next(a for t, a in parsed.seen if t == "circle")
        assert f"{dot['cx']},{dot['cy']}" == points.split()[4]
