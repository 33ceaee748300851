"""Items made in a background thread while the device computes."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
AHEAD = 2  # batches prepared before they are needed


def ahead(items: Iterable[Item], depth: int = AHEAD) -> Iterator[Item]:
    """The same items, made in a background thread that runs at most `depth` of them ahead.

    An exception there is raised here, in its place. A consumer that stops early stops the thread.
    """
    line: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: Any) -> bool:
        while not stop.is_set():
            try:
                line.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # handed over to the consumer, who raises it
            put((None, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = line.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
