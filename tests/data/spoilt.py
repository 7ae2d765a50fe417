"""What happens to files: bytes flip, are cut off, lost, doubled, written over."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: One file is written again and again in the test's own folder.
often = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

seldom = settings(often, max_examples=50)


@st.composite
def edits(draw, content):
    """The content after one to three of them."""
    for _ in range(draw(st.integers(1, 3))):
        content = draw(_edit(content))
    return content


def _edit(content):
    places = st.integers(0, max(len(content) - 1, 0))
    return st.one_of(
        st.builds(_flip, st.just(content), places, st.integers(0, 7)),
        st.builds(_replace, st.just(content), places, st.integers(0, 12), _PARTS),
        places.map(lambda end: content[:end]),
        places.map(lambda at: content[:at] + content[at : at + 12] + content[at:]),
    )


_PARTS = st.binary(max_size=12) | st.sampled_from(
    [b"\xff" * 8, bytes(8), b"9" * 12, b"-1", b"\n", b",", b'"']
)


def _flip(content, at, bit):
    return _replace(content, at, 1, bytes([content[at] ^ 1 << bit])) if content else b""


def _replace(content, at, count, part):
    return content[:at] + part + content[at + count :]
