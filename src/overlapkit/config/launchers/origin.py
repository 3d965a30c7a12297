"""Whose configuration was read, where it is not the framework's own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """The launcher that a configuration is for.

    Attributes:
        name: as its makers write it.
        remarks: sentences for the user: whose rules are applied, which defaults were taken from
            where, and what is not read.
        unread: whether it decides on something that was not read, so that no answer is about the
            whole run.
        own_data_parallel: whether another implementation than Megatron-Core's reduces gradients and
            gathers parameters, so that rules about data parallelism do not hold.
        other_rules: whether its own rules are others, so that no finding of Megatron-LM's rules is
            certain.
        takes_flags: whether it takes Megatron-LM's flags as they are, so that a remedy can be
            written into its script.
    """

    name: str
    remarks: tuple[str, ...] = ()
    unread: bool = True
    own_data_parallel: bool = False
    other_rules: bool = False
    takes_flags: bool = False
