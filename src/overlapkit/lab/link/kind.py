"""What connects the ranks of a lab, and what that means for what is measured over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

LinkKind = Literal["kernel", "paced", "unshaped"]
Isolation = Literal["namespace", "tree"]

_MEANING: dict[LinkKind, str] = {
    "kernel": (
        "every rank has a cable of its own, limited in both directions by the kernel: "
        "all that a rank sends at once shares its rate, as on a network card"
    ),
    "paced": (
        "each TCP connection is limited by itself, and only in what it sends: a rank that sends "
        "over several at once gets several times the rate, so communication of several groups at "
        "the same time looks cheaper than on a real link"
    ),
    "unshaped": (
        "ranks exchange data through this machine's memory, which is too fast to be worth hiding: "
        "equality of the numbers learned can be judged, differences in step time cannot"
    ),
}

_ISOLATION: dict[Isolation, str] = {
    "namespace": "ranks run in a process-id namespace, which the kernel empties whatever happens",
    "tree": (
        "process-id namespaces are not permitted here: ranks are ended one by one, and a process "
        "that a rank started may outlive the lab if the lab and its supervisor are both killed"
    ),
}


@dataclass(frozen=True)
class LinkUsed:
    """How the ranks were connected and kept.

    Attributes:
        kind: "kernel" (a bridge and veth pairs with tbf), "paced" (SO_MAX_PACING_RATE on each
            connection) or "unshaped".
        isolation: "namespace" or "tree": how their processes were kept together.
        refusals: why the kernel made no link, if it was asked to; None where nobody asked.
    """

    kind: LinkKind
    isolation: Isolation
    refusals: tuple[str, ...] | None = None

    @property
    def shaped(self) -> bool:
        """Whether communication takes the time of a slow link."""
        return self.kind != "unshaped"

    @property
    def reason(self) -> str:
        """Why it is this kind of link, in one sentence."""
        if self.refusals is None:
            return "no slow link was asked for"
        if self.kind == "kernel":
            return "network namespaces are permitted here"
        why = "; ".join(self.refusals)
        tail = "" if self.kind == "paced" else "; and the kernel does not pace connections"
        return f"the kernel made no link between network namespaces ({why}){tail}"

    @property
    def meaning(self) -> str:
        """What it means for the measurement, in one sentence."""
        return _MEANING[self.kind]

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "kind": self.kind,
            "shaped": self.shaped,
            "reason": self.reason,
            "meaning": self.meaning,
            "isolation": _ISOLATION[self.isolation],
        }
