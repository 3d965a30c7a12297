"""What connects the ranks of a lab, and what that means for the measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LinkKind = Literal["kernel", "paced", "unshaped"]
Isolation = Literal["namespace", "tree"]

_MEANING: dict[LinkKind, str] = {
    "kernel": (
        "each rank has a link of its own, limited in both directions by the kernel: everything "
        "that a rank sends at the same time shares its rate, as on a network card"
    ),
    "paced": (
        "each TCP connection is limited separately, and only in what it sends: a rank that sends "
        "over several connections gets several times the rate, so simultaneous communication of "
        "several groups looks cheaper than on a real link"
    ),
    "unshaped": (
        "ranks communicate through this machine's memory, which is too fast to be worth hiding: "
        "results can be compared, but step times cannot"
    ),
}

_ISOLATION: dict[Isolation, str] = {
    "namespace": "ranks run in a process-id namespace, which the kernel always cleans up",
    "tree": (
        "process-id namespaces are not permitted here: ranks are ended one by one, and a process "
        "started by a rank can survive if the lab and its supervisor are both killed"
    ),
}


@dataclass(frozen=True)
class LinkUsed:
    """How the ranks were connected and their processes kept together.

    Attributes:
        kind: "kernel" (a bridge and veth pairs with tbf), "paced" (SO_MAX_PACING_RATE on each
            connection) or "unshaped".
        isolation: "namespace" or "tree": how the processes were kept together.
        refusals: why the kernel made no link; None where no slow link was requested.
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
            return "no slow link was requested"
        if self.kind == "kernel":
            return "network namespaces are permitted here"
        why = "; ".join(self.refusals)
        tail = "" if self.kind == "paced" else "; and the kernel does not pace connections"
        return f"the kernel cannot connect network namespaces ({why}){tail}"

    @property
    def meaning(self) -> str:
        """What it means for the measurement, in one sentence."""
        return _MEANING[self.kind]

    @property
    def isolated(self) -> str:
        """How the processes were kept together, in one sentence."""
        return _ISOLATION[self.isolation]
