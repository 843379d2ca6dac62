"""The strategy of every run on several processes."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy


def make_strategy(process_group_backend: str | None = None) -> DDPStrategy:
    """The strategy of every multi-process run.

    Every parameter gets a gradient in every step (a delayed term is evaluated with weight 0), so no search for unused
    parameters. Buffers are not broadcast: rank 0's batch statistics are no better than the others'; `average_buffers`
    makes them equal before they are used.
    """
    return DDPStrategy(
        find_unused_parameters=False,
        static_graph=False,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        process_group_backend=process_group_backend,
    )
