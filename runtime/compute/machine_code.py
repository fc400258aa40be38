"""LLVM modules to functions of this processor: in milliseconds, with no compiler installed."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from llvmlite import binding, ir


class Module:
    """`code` is filled first; the first `function` compiles it. It must outlive its functions."""

    def __init__(self) -> None:
        self.code = ir.Module()
        self._engine: Any = None

    def address(self, name: str) -> int:
        if self._engine is None:
            self._engine = _compile(str(self.code))
        address: int = self._engine.get_function_address(name)
        return address

    def function(self, name: str, *arguments: Any, returns: Any = None) -> Any:
        """Callable with numbers; other threads run meanwhile."""
        call = ctypes.CFUNCTYPE(returns, *arguments)(self.address(name))
        call.module = self  # type: ignore[attr-defined]  # keeps the code alive
        return call


@cache
def features() -> frozenset[str]:
    """What this processor has, in LLVM's words, such as avx2 or neon."""
    return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)


@cache
def _prepare() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()


def _machine() -> Any:
    """A new one for each module: the compiled code owns it and frees it when it goes."""
    _prepare()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


def _compile(code: str) -> Any:
    machine = _machine()
    module = binding.parse_assembly(code)
    module.verify()
    # With LLVM's own pipeline (O3) a loop took 20 ms to compile where it takes 12 with these, and
    # was no faster, being written in vectors. Without combining, K blocks were read a fifth slower.
    passes = binding.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_new_gvn_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, binding.create_pass_builder(machine, binding.PipelineTuningOptions()))
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
