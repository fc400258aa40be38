"""How several threads share the rows of one loop, in LLVM's language: claimed piece by piece.

A loop over a layer takes 50 us, so its pieces are handed out without asking the operating system:
a thread that comes late, or that the system has put aside, has claimed less, and the others do it.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from runtime.compute.vector_code import INT64, WORDS, integer

# The words of a job; the kernel's own arguments follow.
NEXT, KERNEL, ROWS, STEP = range(4)
FIRST_ARGUMENT: Final = 4


def work_code(module: ir.Module) -> None:
    """void work(job): what each thread of the team does, until no rows are left."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORDS]), "work")
    (job,) = function.args
    begin, claim, do, end = (function.append_basic_block() for _ in range(4))
    b = ir.IRBuilder(begin)
    rows, step = (b.load(b.gep(job, [integer(word)])) for word in (ROWS, STEP))
    b.branch(claim)
    b.position_at_end(claim)
    piece = b.atomic_rmw("add", b.gep(job, [integer(NEXT)]), integer(1), "monotonic")
    first = b.mul(piece, step)
    b.cbranch(b.icmp_signed("<", first, rows), do, end)
    b.position_at_end(do)
    past = b.add(first, step)
    last = b.select(b.icmp_signed("<", past, rows), past, rows)
    kernel = ir.FunctionType(ir.VoidType(), [WORDS, INT64, INT64]).as_pointer()
    address = b.load(b.gep(job, [integer(KERNEL)]))
    b.call(b.inttoptr(address, kernel), [b.gep(job, [integer(FIRST_ARGUMENT)]), first, last])
    b.branch(claim)
    b.position_at_end(end)
    b.ret_void()
