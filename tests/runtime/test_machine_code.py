"""Compiled code that comes and goes."""

from __future__ import annotations

import ctypes
import gc

from llvmlite import ir

from runtime.compute.machine_code import Module


def function_that_returns(number: int) -> object:
    module = Module()
    word = ir.IntType(64)
    function = ir.Function(module.code, ir.FunctionType(word, []), "number")
    ir.IRBuilder(function.append_basic_block()).ret(word(number))
    return module.function("number", returns=ctypes.c_int64)


def test_code_that_is_dropped_leaves_the_next_one_whole() -> None:
    """Two threads that compile the same loop at once drop one of the two."""
    for number in range(10):
        function = function_that_returns(number)
        assert callable(function)
        assert function() == number
        del function
        gc.collect()
