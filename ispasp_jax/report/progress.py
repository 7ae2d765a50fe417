"""What a run says while it runs."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized

from ispasp_jax.numerals import numeral


def say(text: str) -> None:
    """A line for the person who waits, on stderr; of several processes the first's."""
    from ispasp_jax import devices

    if devices.is_first():
        print(text, file=sys.stderr, flush=True)


def track(items: Iterable, label: str, total: int | None = None) -> Iterator:
    """The items themselves, with a bar on a terminal, else a line now and then.

    Args:
      items: what is gone through.
      label: what is done with them.
      total: how many they are, where they do not say so themselves.
    """
    from ispasp_jax import devices

    total = len(items) if isinstance(items, Sized) else total
    if sys.stderr.isatty() and devices.is_first():
        from tqdm import tqdm

        yield from tqdm(items, label, total, leave=False, dynamic_ncols=True)
        return
    start, told = time.perf_counter(), time.perf_counter()
    for count, item in enumerate(items, 1):
        yield item
        if time.perf_counter() - told > 10:
            told = time.perf_counter()
            of = f"/{total}" if total else ""
            say(f"  {label}: {count}{of}, {numeral(told - start)} s")
