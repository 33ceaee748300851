"""A thread that works ahead."""

import itertools
import threading

import pytest

from equijax.graph import prefetch


def test_background_thread_passes_on_items_errors_and_the_end():
    def items():
        yield from range(5)
        raise ValueError("in the thread")

    seen = []
    with pytest.raises(ValueError, match="in the thread"):
        for item in prefetch.ahead(items()):
            seen.append(item)
    assert seen == list(range(5))
    before = threading.active_count()
    endless = prefetch.ahead(itertools.count())
    assert next(endless) == 0
    endless.close()
    assert threading.active_count() == before
