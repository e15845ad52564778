"""One thing that a search decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    """One thing to decide.

    Attributes:
        kind: "prune", "bits" or "sparsity".
        subject: the group or layer.
        choices: ratios, (weights, activations) pairs or sparsity levels (fractions or patterns), from the
            least to the most compression.
    """

    kind: str
    subject: str
    choices: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The parameter's name in the study."""
        return f"{self.kind}:{self.subject}"

    @property
    def ends_whole(self) -> bool:
        """The last choice removes a whole residual branch, and it is not the only one."""
        return self.kind == "prune" and len(self.choices) > 1 and self.choices[-1] == 1
