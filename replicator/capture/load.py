"""Loads programs into the kernel and attaches them, each in the way that this kernel offers.

Takes an assembly of hooks (source.py) and what was made of it (object.py); gives maps, the hooks that are attached with
how, those that are not with why, and what the kernel counts of them. Everything is gone when the process is, unless it
is kept (`keep`); then the next process takes it over as it is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.capture import bpf
from replicator.capture.btf import Function, Types
from replicator.capture.direct import Cast, aimed
from replicator.capture.kept import Build, KeptProgram, Signature
from replicator.capture.layout import FunctionHook, Hook
from replicator.capture.maps import Map
from replicator.capture.object import MapSpec, Object, relocate
from replicator.capture.probes import Probe, Probes
from replicator.capture.source import AnyHook, Assembly, Excluded, most_spares, probe_programs, program_name
from replicator.errors import EnvironmentFault
from replicator.keeper.pins import Pins

_log = logging.getLogger(__name__)

TRACEPOINT: Final = "raw tracepoint"
TRAMPOLINES: Final = {True: "fentry", False: "fexit"}
PROBES: Final = {True: "kprobe", False: "kretprobe"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """One program in the kernel."""

    hook: AnyHook
    mechanism: str
    """TRACEPOINT, or of TRAMPOLINES or PROBES."""
    descriptor: int
    spare: int = 0
    """Which one it is of several that are attached to the same place: what the first misses the next one sees."""
    name: str = ""
    """Of its function in the sources."""


class Program:
    """The programs and maps of one assembly. `close` removes all that is not kept."""

    def __init__(
        self,
        assembly: Assembly,
        made: Object,
        types: Types,
        sizes: Mapping[str, int],
        *,
        trampolines: bool = True,
        spares: int = 1,
        probes: Probes | None = None,
        attach: bool = True,
        more_maps: Sequence[MapSpec] = (),
        cast: Cast | None = None,
        plain: Callable[[], Object] | None = None,
        adopt: tuple[Pins, Signature] | None = None,
    ) -> None:
        """Load and attach what the kernel takes; what it refuses is in `excluded`. Without `attach`, only load.

        `sizes`: max_entries of maps, by name; `more_maps` are made besides. Functions are hooked by trampolines if
        those are wanted, else, or where one is refused, by `probes` if there are some. What may be skipped gets so many
        `spares` (source.py), or as many as there are. EnvironmentFault if the maps cannot be made.

        `cast`: what `made` was assembled with; then `plain` makes the same without, for a program that the kernel's
        verifier does not take so.

        `types` are not kept: they are megabytes. With `adopt`, nothing is loaded: what has this signature is taken
        over. OSError if a part of it is missing.
        """
        self.loaded: list[Loaded] = []
        self.excluded: list[Excluded] = list(assembly.excluded)
        self._hooks = assembly.hooks
        self._made, self._cast, self._plain = made, cast, plain
        self._trampolines, self._probes, self._attach = trampolines, probes, attach
        self._spares = spares
        self._links: dict[str, int] = {}
        self._maps: dict[str, Map] = {}
        self._modules: dict[str, int] = {}
        self._kept: tuple[Pins, Build] | None = None
        specs = [spec._replace(max_entries=sizes.get(spec.name, spec.max_entries)) for spec in (*made.maps, *more_maps)]
        try:
            if adopt is not None:
                self._adopt(specs, *adopt)
                return
            self._make_maps(specs)
            for hook in assembly.hooks:
                if isinstance(hook, Hook):
                    self._attach_at_tracepoint(hook, types)
                else:
                    self._attach_function(hook, types)
        except BaseException:
            self.close()
            raise

    def map(self, name: str) -> Map:
        """A map of the sources. KeyError if no family in use has it."""
        return self._maps[name]

    def has_map(self, name: str) -> bool:
        """Whether a family in use has this map."""
        return name in self._maps

    @property
    def attached(self) -> list[AnyHook]:
        """Every hook that is in use, each once."""
        return list(dict.fromkeys(item.hook for item in self.loaded))

    def back(self, hook: FunctionHook) -> bool:
        """Attach probes to a function that trampolines see: what both of their programs miss the probes tell.

        Probes cost each call more, but are never preempted. False if there can be none.
        """
        if self._probes is None:
            return False
        there = len(self.loaded)
        try:
            self._attach_probes(hook, self._probes)
        except OSError as fault:
            _log.debug("%s: no probes besides: %s", hook, fault)
            return False
        if self._kept is not None:
            try:
                self._pin(self._kept[0], self.loaded[there:])
                self._sign(*self._kept)
            except OSError as fault:
                _log.warning("the probes of %s are not kept: %s", hook.function, fault)
        return True

    def keep(self, pins: Pins, build: Build) -> None:
        """Have everything stay when the process ends, in place of what `pins` had. OSError if that cannot be.

        What is attached later is kept as well.
        """
        pins.clear()
        for name, made in self._maps.items():
            pins.pin(f"map_{name}", made.descriptor)
        self._pin(pins, self.loaded)
        self._sign(pins, build)
        self._kept = pins, build

    def _pin(self, pins: Pins, programs: Sequence[Loaded]) -> None:
        for item in programs:
            if item.name not in self._links:
                raise OSError(errno.EOPNOTSUPP, "this kernel has no links to kernel probes", item.name)
            pins.pin(f"program_{item.name}", item.descriptor)
            pins.pin(f"link_{item.name}", self._links[item.name])

    def _sign(self, pins: Pins, build: Build) -> None:
        programs = tuple(
            KeptProgram(item.name, self.place(item.hook), item.mechanism, item.spare) for item in self.loaded
        )
        refused = tuple(
            (self.place(left.hook), left.reason, left.refused) for left in self.excluded if left.hook in self._hooks
        )
        events = () if self._probes is None else self._probes.events
        pins.sign(Signature(build, programs, refused, events).dump())

    def _adopt(self, specs: Sequence[MapSpec], pins: Pins, signature: Signature) -> None:
        """Take over what was kept: all of it, each link with its program."""
        for spec in specs:
            self._maps[spec.name] = Map(spec, pins.get(f"map_{spec.name}"))
        for kept in signature.programs:
            hook = self._hooks[kept.place]
            item = Loaded(hook, kept.mechanism, pins.get(f"program_{kept.name}"), kept.spare, kept.name)
            self.loaded.append(item)
            self._links[kept.name] = pins.get(f"link_{kept.name}")
            if bpf.linked_program_id(self._links[kept.name]) != bpf.program_id(item.descriptor):
                raise OSError(errno.ESTALE, "a link calls another program", kept.name)
        self.excluded += [
            Excluded(self._hooks[place], reason, refused=refused) for place, reason, refused in signature.refused
        ]
        if self._probes is not None:
            self._probes.adopt(signature.events)
        self._kept = pins, signature.build

    def place(self, hook: AnyHook) -> int:
        """The hook's number in ebpf/notes.h."""
        return self._hooks.index(hook)

    def close(self) -> None:
        """Detach all hooks and free programs and maps, but for what is kept. May be called twice."""
        for descriptor in (*self._links.values(), *(item.descriptor for item in self.loaded), *self._modules.values()):
            os.close(descriptor)
        if self._probes is not None:  # whose events cannot be removed while links have them
            self._probes.close()
        self._links, self.loaded, self._modules = {}, [], {}
        for made in self._maps.values():
            made.close()

    def _make_maps(self, specs: Sequence[MapSpec]) -> None:
        for spec in specs:
            try:
                self._maps[spec.name] = Map(spec)
            except OSError as fault:
                raise EnvironmentFault(
                    f"the kernel cannot make the BPF map {spec.name} ({fault.strerror}): free some memory, or raise "
                    "the limit on locked memory"
                ) from fault

    def _load(self, kind: int, name: str, shown: str, *, attach: int = 0, function: int = 0, module: int = 0) -> int:
        """A program's descriptor. See bpf.load_program."""

        def load(made: Object, cast: Cast | None) -> int:
            code = relocate(made.programs[name], [self._maps[spec.name].descriptor for spec in made.maps])
            code = code if cast is None else aimed(code, cast)
            return bpf.load_program(kind, code, shown, attach=attach, function=function, module=module)

        try:
            return load(self._made, self._cast)
        except bpf.Refused as refused:
            if self._plain is None or not refused.log:
                raise
            _log.debug("%s: refused with direct loads: %s", name, refused.log)
        return load(self._plain(), None)

    @contextlib.contextmanager
    def _excluding(self, hook: AnyHook) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            self.excluded.append(_refusal(hook, fault))

    def _attach_at_tracepoint(self, hook: Hook, types: Types) -> None:
        with self._excluding(hook):
            # the kernel calls them in the order in which they were attached
            for spare in range(1 + self._spares_of(hook, types)):
                self._attach_tracepoint(hook, spare)

    def _attach_tracepoint(self, hook: Hook, spare: int) -> None:
        name = program_name(hook, spare)
        program = self._load(bpf.PROGRAM_RAW_TRACEPOINT, name, f"rsyncfs_{hook.tracepoint}")
        self._link(Loaded(hook, TRACEPOINT, program, spare, name), hook.tracepoint)

    def _spares_of(self, hook: AnyHook, types: Types) -> int:
        return min(self._spares, most_spares(hook, types))

    def _link(self, loaded: Loaded, tracepoint: str | None = None) -> None:
        """Attach it, or close it."""
        try:
            if self._attach:
                self._links[loaded.name] = bpf.attach_program(loaded.descriptor, tracepoint)
        except OSError:
            os.close(loaded.descriptor)
            raise
        self.loaded.append(loaded)

    def _attach_function(self, hook: FunctionHook, types: Types) -> None:
        function = types.function(hook.function)
        assert function is not None
        refusal: Excluded | None = None
        if self._trampolines:
            try:
                # the kernel calls the one that was attached last first
                for spare in range(self._spares_of(hook, types), -1, -1):
                    self._attach_trampoline(hook, function, spare)
            except OSError as fault:
                refusal = _refusal(hook, fault)
            else:
                return
        if self._probes is None:
            self.excluded.append(refusal or Excluded(hook, "neither trampolines nor probes are to be had"))
            return
        with self._excluding(hook):
            self._attach_probes(hook, self._probes)

    def _attach_trampoline(self, hook: FunctionHook, function: Function, spare: int) -> None:
        name = program_name(hook, spare)
        program = self._load(
            bpf.PROGRAM_TRACING,
            name,
            f"rsyncfs_{hook.function}",
            attach=bpf.FENTRY if hook.entry else bpf.FEXIT,
            function=function.id,
            module=self._module(function.module),
        )
        self._link(Loaded(hook, TRAMPOLINES[hook.entry], program, spare, name))

    def _attach_probes(self, hook: FunctionHook, probes: Probes) -> None:
        """The return first: an entry that is seen must have its return seen."""
        entry, after = probe_programs(hook)
        for name, returns in ((after, True), (entry, False)):
            if name:
                program = self._load(bpf.PROGRAM_KPROBE, name, f"rsyncfs_{hook.function}")
                try:
                    link = probes.attach(Probe(hook.function, returns), program) if self._attach else None
                except OSError:
                    os.close(program)
                    raise
                if link is not None:
                    self._links[name] = link
                self.loaded.append(Loaded(hook, PROBES[not returns], program, name=name))

    def _module(self, module: str) -> int:
        if not module:
            return 0
        if module not in self._modules:
            self._modules[module] = bpf.module_types(module)
        return self._modules[module]


def _refusal(hook: AnyHook, fault: OSError) -> Excluded:
    log = fault.log if isinstance(fault, bpf.Refused) else ""
    _log.debug("%s: %s: %s", hook, fault, log)
    last = next((line for line in reversed(log.splitlines()) if line and not line.startswith("processed")), "")
    return Excluded(hook, f"the kernel refuses it: {fault.strerror}{f' ({last})' if last else ''}", log, refused=True)
