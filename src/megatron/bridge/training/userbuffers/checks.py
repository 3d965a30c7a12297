"""Checks userbuffers settings, as plain dicts, against the rules in `facts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.decisions import Decision, Outcome, Rule
from megatron.bridge.training.edits import REMOVED, Edit, either, in_words
from megatron.bridge.training.near_names import did_you_mean
from megatron.bridge.training.userbuffers.facts import (
    ATOMIC_BULK,
    ATOMIC_FP8,
    ATOMIC_PAIR,
    CGA_DIVIDES,
    CGA_SIZE,
    COLLECTIVE,
    FLAG_TABLE,
    FLAGGED_SMS,
    FP8_BUF_LIST,
    FP8_BUF_UNUSED,
    FP8_SCATTERABLE,
    GEMM_NAME,
    GEMMS,
    INTEGERS,
    KEY_NAME,
    KEY_TYPE,
    KEY_UNUSED,
    KEYS,
    KNOB,
    MAX_CGA_SIZE,
    METHOD_DEFAULTS,
    METHOD_GEMM,
    METHOD_NAME,
    METHOD_STAND_IN,
    METHODS,
    PAIRS,
    PIPELINE_GATHER,
    POSITIVE,
    RING,
    SPLIT_DGRAD_MODES,
    SPLIT_DGRAD_SWITCH,
    SPLIT_DGRAD_WGRAD,
    WGRADS,
    Gemm,
)
from megatron.bridge.training.userbuffers.remedies import (
    SWITCH,
    TE_NUM_SPLITS,
    cluster,
    converted,
    key_of,
    method_meant,
    renamed,
)

_INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True)
class _Entry:
    """One GEMM's settings, with checked types, and the run that they are for."""

    name: str
    given: Mapping[str, Any]
    fp8: bool | None
    also_bf16: bool
    rs_dgrad: bool | None

    def knob(self, key: str) -> str:
        return f"{KNOB}.{self.name}.{key}"

    @property
    def gemm(self) -> Gemm:
        return GEMMS[self.name]

    @property
    def method(self) -> str:
        method: str = self.given.get("method", self.gemm.method)
        return method

    @property
    def is_split_dgrad(self) -> bool:
        """Whether this is a dgrad that does the reduce-scatter, instead of its wgrad."""
        return self.name in WGRADS and self.method != "bulk"

    @property
    def collective(self) -> str:
        return "reduce-scatter" if self.is_split_dgrad else self.gemm.collective

    @property
    def default_method(self) -> str:
        """The method whose defaults fill in what is not given."""
        return self.method if self.is_split_dgrad else self.gemm.method

    @property
    def by_kernel(self) -> bool:
        """Whether SMs move the data, instead of the copy engines."""
        return self.method != "ring_exchange" or not self.given.get("use_ce", True)

    def sms(self, key: str) -> int:
        """num_sm or cga_size; Transformer Engine's default where it is not given."""
        default = {"num_sm": 16, "cga_size": 2}[key] if self.default_method != RING else 1
        value: int = self.given.get(key, default)
        return value

    @property
    def atomic_ring(self) -> bool:
        return bool(self.given.get("atomic_gemm")) and self.method == RING

    def change(self, **settings: object) -> tuple[Edit, ...]:
        """Changes of this GEMM's settings; `REMOVED` takes one away."""
        return tuple(Edit(key_of(self.name, key), value) for key, value in settings.items())

    def error(
        self, rule: Rule, key: str, reason: str, edits: tuple[Edit, ...], otherwise: str = ""
    ) -> Decision:
        return rule.decide(
            self.knob(key),
            requested=self.given.get(key),
            effective=None,
            reason=reason,
            outcome=Outcome.ERROR,
            remedy=either(edits, otherwise),
            edits=edits,
        )

    def refusal(
        self,
        rule: Rule,
        key: str,
        effective: object,
        reason: str,
        edits: tuple[Edit, ...],
        otherwise: str = "",
    ) -> Decision:
        """Accepted by Transformer Engine, and not done as requested."""
        note = self.note(rule, key, effective, reason, edits, otherwise)
        return replace(note, outcome=Outcome.REFUSED)

    def note(
        self,
        rule: Rule,
        key: str,
        effective: object,
        reason: str,
        edits: tuple[Edit, ...],
        otherwise: str = "",
    ) -> Decision:
        return rule.decide(
            self.knob(key),
            requested=self.given.get(key),
            effective=effective,
            reason=reason,
            outcome=Outcome.NOTE,
            remedy=either(edits, otherwise),
            edits=edits,
        )


def check_gemms(
    gemms: Mapping[str, Mapping[str, Any]],
    *,
    fp8: bool | None,
    also_bf16: bool,
    rs_dgrad: bool | None,
) -> Iterator[Decision]:
    """The decisions of `check_userbuffers` about plain dicts."""
    entries: dict[str, _Entry] = {}
    for name, given in gemms.items():
        if name not in GEMMS:
            yield GEMM_NAME.decide(
                f"{KNOB}.{name}",
                requested=given,
                effective=None,
                reason=f"Transformer Engine has no GEMM {name!r}{did_you_mean(name, GEMMS)} "
                "and ignores these settings",
                outcome=Outcome.REFUSED,
                edits=renamed(name, GEMMS, gemms, key_of(name)),
            )
            continue
        raw = _Entry(name, given, fp8, also_bf16, rs_dgrad)
        refused = list(_check_keys(raw))
        yield from refused
        bad = {decision.knob for decision in refused}
        valid = {key: value for key, value in given.items() if raw.knob(key) not in bad}
        entries[name] = _Entry(name, valid, fp8, also_bf16, rs_dgrad)
    for entry in entries.values():
        for check in _ENTRY_CHECKS:
            yield from check(entry)
    yield from _check_split_dgrads(entries)
    yield from _check_atomic_pairs(entries)


def _check_keys(entry: _Entry) -> Iterator[Decision]:
    for key, value in entry.given.items():
        if key not in KEYS:
            reason = f"Transformer Engine knows no setting {key!r}{did_you_mean(key, KEYS)}"
            edits = renamed(key, KEYS, entry.given, key_of(entry.name, key))
            yield entry.error(KEY_NAME, key, reason, edits)
        elif key == "method":
            if not isinstance(value, str):
                reason = f"{value!r} is not a method's name"
                yield entry.error(KEY_TYPE, key, reason, entry.change(method=entry.gemm.method))
            elif value not in METHODS:
                known = did_you_mean(value, METHODS)
                edits = entry.change(method=method_meant(value, entry.name))
                yield entry.error(METHOD_NAME, key, f"there is no method {value!r}{known}", edits)
        elif key in INTEGERS:
            if type(value) is not int or value not in _INT32:
                reason = f"{value!r} is not a 32-bit integer"
                yield entry.error(KEY_TYPE, key, reason, _converted(entry, key, value))
        elif not (key == "fp8_buf" and _is_boxed_bool(value)) and not _is_switch(value):
            reason = f"{value!r} is neither true nor false"
            yield entry.error(KEY_TYPE, key, reason, _converted(entry, key, value))


def _converted(entry: _Entry, key: str, value: object) -> tuple[Edit, ...]:
    """A setting of the wrong kind in its own kind, or as Transformer Engine has it by default."""
    meant = converted(key, value)
    return entry.change(**{key: _own(entry, key) if meant is None else meant})


def _own(entry: _Entry, key: str) -> object:
    """Transformer Engine's default; `REMOVED` where it depends on more than is known here."""
    if key in ("num_sm", "cga_size"):
        return {"num_sm": 16, "cga_size": 2}[key] if entry.gemm.method != RING else 1
    return TE_NUM_SPLITS if key == "num_splits" else REMOVED


def _is_switch(value: object) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _is_boxed_bool(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 1
        and isinstance(value[0], bool)
    )


def _check_method(entry: _Entry) -> Iterator[Decision]:
    method, gemm = entry.method, entry.gemm
    if method in gemm.methods:
        omitted = [k for k in ("num_sm", "cga_size", "set_sm_margin") if k not in entry.given]
        if method == RING != entry.default_method and omitted:
            default = f"{entry.default_method} defaults for {', '.join(omitted)}"
            reason = f"{entry.name} takes Transformer Engine's {default}"
            its_own = {"num_sm": 1, "cga_size": 1, "set_sm_margin": False}
            edits = entry.change(**{key: its_own[key] for key in omitted})
            yield entry.note(METHOD_DEFAULTS, "method", method, reason, edits)
        return
    edits = entry.change(method=gemm.method)
    others = " or ".join(each for each in gemm.methods if each != gemm.method)
    overridden = entry.given.get("is_reduce_scatter", False)
    if method == "pipeline" and gemm.collective == "all-gather" and not overridden:
        reason = f"{entry.name} all-gathers, and pipeline is for reduce-scatters only"
        yield entry.error(PIPELINE_GATHER, "method", reason, edits, others)
    elif gemm.stand_in and method != RING:
        reason = f"{method} is not meant for {entry.name}, which runs it as {gemm.stand_in}"
        yield entry.refusal(METHOD_STAND_IN, "method", gemm.stand_in, reason, edits, others)
    else:
        reason = f"{entry.name} cannot run {method}"
        yield entry.error(METHOD_GEMM, "method", reason, edits, others)


def _check_atomic(entry: _Entry) -> Iterator[Decision]:
    if not entry.given.get("atomic_gemm"):
        return
    off = entry.change(atomic_gemm=False)
    if entry.fp8 is False or entry.also_bf16:
        found = "some layers run in BF16" if entry.fp8 else "this run does not use FP8"
        reason = f"atomic_gemm needs FP8 GEMMs, and {found}"
        yield entry.error(ATOMIC_FP8, "atomic_gemm", reason, off, "train every layer in FP8")
    elif entry.fp8 is None:
        reason = "Transformer Engine refuses atomic_gemm unless the run uses FP8"
        yield entry.note(ATOMIC_FP8, "atomic_gemm", True, reason, off, "train every layer in FP8")
    if entry.method in ("bulk", "external"):
        reason = f"Transformer Engine switches it off for a {entry.method} overlap"
        yield entry.refusal(ATOMIC_BULK, "atomic_gemm", False, reason, off)


def _check_sizes(entry: _Entry) -> Iterator[Decision]:
    small = [k for k in ("num_sm", "cga_size", "num_splits") if entry.given.get(k, 1) < 1]
    for key in small:
        reason = f"{key} is {entry.given[key]}, and must be at least 1"
        yield entry.error(POSITIVE, key, reason, entry.change(**{key: _own(entry, key)}))
    num_sm, cga_size = entry.sms("num_sm"), entry.sms("cga_size")
    if {"num_sm", "cga_size"} & set(small):
        return
    fits = entry.change(cga_size=cluster(num_sm, cga_size))
    if cga_size > MAX_CGA_SIZE:
        reason = f"cga_size is {cga_size}, above {MAX_CGA_SIZE}"
        yield entry.error(CGA_SIZE, "cga_size", reason, fits)
    elif not entry.by_kernel:
        return
    elif cga_size > num_sm:
        reason = f"cga_size is {cga_size}, above num_sm={num_sm}"
        yield entry.error(CGA_SIZE, "cga_size", reason, fits)
    elif num_sm % cga_size:
        reason = f"cga_size={cga_size} does not divide num_sm={num_sm}: kernels run unclustered"
        remedy = "make num_sm a multiple of cga_size"
        yield entry.note(CGA_DIVIDES, "cga_size", 1, reason, fits, remedy)
    if num_sm > FLAGGED_SMS:
        reason = f"num_sm is {num_sm}, and the flags between GPUs are for {FLAGGED_SMS} SMs"
        yield entry.note(FLAG_TABLE, "num_sm", num_sm, reason, entry.change(num_sm=FLAGGED_SMS))


def _check_unused(entry: _Entry) -> Iterator[Decision]:
    if "is_reduce_scatter" in entry.given:
        scatters = entry.collective == "reduce-scatter"
        if bool(entry.given["is_reduce_scatter"]) is not scatters:
            reason = f"with {entry.method}, {entry.name} runs with a {entry.collective}"
            edits = entry.change(is_reduce_scatter=REMOVED)
            yield entry.error(COLLECTIVE, "is_reduce_scatter", reason, edits)
    if entry.method == RING:
        unused = {"num_splits": None, "pipeline_rs_overlap_first_gemm": False}
    else:
        unused = {"aggregate": False, "use_ce": True}
    for key, neutral in unused.items():
        if key in entry.given and (neutral is None or bool(entry.given[key]) is not neutral):
            reason = f"{entry.method} does not use {key}"
            yield entry.note(KEY_UNUSED, key, neutral, reason, entry.change(**{key: REMOVED}))


def _check_fp8_buf(entry: _Entry) -> Iterator[Decision]:
    value = entry.given.get("fp8_buf", False)
    if not value:
        return
    boxed_false = _is_boxed_bool(value) and not value[0]
    scatters_fp8 = entry.name in FP8_SCATTERABLE or (
        entry.is_split_dgrad and entry.method == "pipeline"
    )
    effective = entry.fp8 is not False and (entry.collective == "all-gather" or scatters_fp8)
    where = "in a run without FP8" if entry.fp8 is False else f"on {entry.name}"
    if boxed_false:
        if effective and entry.collective == "reduce-scatter":
            when = "" if entry.fp8 else " if the run uses FP8"
            follows = f"so {entry.name} reduce-scatters FP8 values{when}"
        else:
            follows = f"which makes no difference {where}"
        reason = f"a list with one element is read as true, {follows}"
        edits = entry.change(fp8_buf=False)
        yield entry.note(FP8_BUF_LIST, "fp8_buf", effective, reason, edits, "true, as it is read")
    elif not effective:
        reason = f"fp8_buf has no effect {where}"
        yield entry.note(FP8_BUF_UNUSED, "fp8_buf", False, reason, entry.change(fp8_buf=False))


_ENTRY_CHECKS: tuple[Callable[[_Entry], Iterator[Decision]], ...] = (
    _check_method,
    _check_atomic,
    _check_sizes,
    _check_unused,
    _check_fp8_buf,
)


def _check_split_dgrads(entries: Mapping[str, _Entry]) -> Iterator[Decision]:
    for name, wgrad in WGRADS.items():
        dgrad = entries.get(name)
        if dgrad is None or not dgrad.is_split_dgrad:
            continue
        bulk = dgrad.change(method="bulk")
        if wgrad in entries:
            edits = (Edit(key_of(wgrad), None),)
            yield SPLIT_DGRAD_WGRAD.decide(
                f"{KNOB}.{wgrad}",
                requested=dict(entries[wgrad].given),
                effective=None,
                reason=f"{name} is {dgrad.method}, so that it reduce-scatters in place of {wgrad}",
                outcome=Outcome.ERROR,
                remedy=either(edits, in_words(bulk)),
                edits=edits,
            )
        if dgrad.also_bf16:
            reason = f"{name} is {dgrad.method}, and FP8 and BF16 layers are both set up"
            otherwise = "turn first_last_layers_bf16 off"
            yield dgrad.error(SPLIT_DGRAD_MODES, "method", reason, bulk, otherwise)
        if not dgrad.rs_dgrad:
            yield _without_switch(dgrad)


def _without_switch(dgrad: _Entry) -> Decision:
    """What a layer makes of a dgrad's method while its own switch is off, or not known."""
    edits, otherwise = (Edit(SWITCH, True),), in_words(dgrad.change(method="bulk"))
    needs = f"{dgrad.method} takes effect only with {SWITCH} on"
    told = (SPLIT_DGRAD_SWITCH, "method")
    if dgrad.rs_dgrad is None:
        return dgrad.note(*told, dgrad.method, needs, edits, otherwise)
    if dgrad.method == RING:
        reason = f"{SWITCH} is off: the layer runs {dgrad.name} as bulk, which ring_exchange cannot"
        return dgrad.error(*told, reason, edits, otherwise)
    return dgrad.refusal(*told, "bulk", f"{SWITCH} is off: {needs}", edits, otherwise)


def _check_atomic_pairs(entries: Mapping[str, _Entry]) -> Iterator[Decision]:
    for gather, scatter in PAIRS.items():
        atomic = [n for n in (gather, scatter) if n in entries and entries[n].atomic_ring]
        if len(atomic) == 1:
            other = scatter if atomic == [gather] else gather
            reason = f"{atomic[0]} is an atomic ring_exchange, and its pair {other} is not"
            entry = entries[atomic[0]]
            edits = entry.change(atomic_gemm=False)
            otherwise = f"set method=ring_exchange and atomic_gemm=true on {other} too"
            yield entry.error(ATOMIC_PAIR, "atomic_gemm", reason, edits, otherwise)
