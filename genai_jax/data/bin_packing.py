"""Best-fit-decreasing bin packing: which things lie together, known before any of them is read."""

from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int64


def pack_best_fit(
    sizes: Int64[np.ndarray, " things"], capacity: int
) -> list[Int64[np.ndarray, " held"]]:
    """Pack things into bins, the largest first, each where it leaves the least room.

    Where the fewest bins are n, at most 11/9 n + 4 are used.

    Args:
        sizes: From 1 to `capacity`.
        capacity: Of a bin.

    Returns:
        The numbers of the things in each bin. They depend on the sizes alone.

    Raises:
        ValueError: If a thing fits into no bin.

    Reference: D. Johnson, A. Demers, J. Ullman, M. Garey and R. Graham, "Worst-case performance
        bounds for simple one-dimensional packing algorithms", SIAM J. Comput. 3(4), 1974.
    """
    if sizes.size and not 1 <= sizes.min() <= sizes.max() <= capacity:
        raise ValueError(
            f"sizes must be from 1 to the capacity {capacity}; got {sizes.min()} to {sizes.max()}. "
            "Drop or cut what is larger."
        )
    bins: list[list[int]] = []
    # Bins by the room that is left in them, and the rooms that there are, sorted.
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    order = np.argsort(-sizes, kind="stable")
    for thing, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        place = bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
            bins[chosen].append(thing)
        else:
            room, chosen = capacity, len(bins)
            bins.append([thing])
        left = room - size
        if left:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(chosen)
    return [np.array(held, np.int64) for held in bins]
