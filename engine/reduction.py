"""What a streaming statistic is: a commutative monoid over batches of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

Batch = TypeVar("Batch", contravariant=True)
Result = TypeVar("Result", covariant=True)


@runtime_checkable
class Reduction(Protocol[Batch, Result]):
    """A statistic that is accumulated batch by batch and merged across workers.

    Any partition of the rows, any order and any number of workers give the same result within the tolerance
    that the reduction states; an instance that has seen nothing is the identity of `merge`. To add a
    statistic, write a class with these six methods and put it through
    `modegap.engine.reduction_checks.check_reduction`.
    """

    def update(self, batch: Batch) -> None:
        """Add the rows of one batch. The batch may be reused afterwards: copy what is kept."""
        ...

    def merge(self, other: Self) -> Self:
        """The reduction of both sets of rows; may change and return self, and leaves `other` as it was."""
        ...

    def finalize(self) -> Result:
        """The result. It may take over the accumulators: the reduction is spent afterwards."""
        ...

    def fresh(self) -> Self:
        """An instance of the same configuration that has seen nothing."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Everything seen, as tensors or numpy arrays in mappings; they may share memory with self."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of an instance of the same configuration."""
        ...
