"""How several threads share the rows of one loop, in LLVM's language: claimed piece by piece.

A loop over a layer takes 50 us, so its pieces are handed out without asking the operating system:
helpers look at one word of memory. The word holds the number of the job and how many of its pieces
are left; whoever takes one away by compare-and-exchange owns that piece. A helper that is late, or
that the system has put aside, has claimed nothing, and the others do the work.

Who looks does not tell the processor so: with a pause in the loop, two threads were no faster than
one in the virtual machine that this was measured on.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from runtime.compute.kernel_code import ARGUMENTS
from runtime.compute.weight_code import INT64, integer

# The job's words of 8 bytes. The kernel's own arguments follow, all but first and last.
TICKET, DONE, KERNEL, ROWS, STEP, FIRST_ARGUMENT = range(6)
WORDS: Final = FIRST_ARGUMENT + len(ARGUMENTS) - 2
PIECES_MASK: Final = (1 << 32) - 1  # the lower half of the ticket; the job's number is the upper


def serve_kernel(module: ir.Module) -> None:
    """void serve(job, turns): takes pieces of whatever jobs come, until `turns` looks in a row
    found none.
    """
    b, (job, turns) = _function(module, "serve", ir.VoidType())
    look, found, nothing, end = (b.function.append_basic_block() for _ in range(4))
    before = b.block
    b.branch(look)
    b.position_at_end(look)
    idle = b.phi(INT64)
    idle.add_incoming(integer(0), before)
    worked = _try_piece(b, job)
    b.cbranch(worked, found, nothing)
    b.position_at_end(found)
    idle.add_incoming(integer(0), found)
    b.branch(look)
    b.position_at_end(nothing)
    more = b.add(idle, integer(1))
    idle.add_incoming(more, nothing)
    b.cbranch(b.icmp_signed("<", more, turns), look, end)
    b.position_at_end(end)
    b.ret_void()


def lead_kernel(module: ir.Module) -> None:
    """waits lead(job, pieces): hands the job out, helps with it, returns when all of it is done:
    how often it looked in vain for a helper to end its piece.
    """
    b, (job, pieces) = _function(module, "lead", INT64)
    work, wait, rest, end = (b.function.append_basic_block() for _ in range(4))
    waits = b.alloca(INT64)
    b.store(integer(0), waits)
    _word(b, job, DONE, integer(0))
    old = b.load_atomic(_place(b, job, TICKET), "monotonic", 8)
    number = b.add(b.and_(old, integer(~PIECES_MASK)), integer(PIECES_MASK + 1))
    b.store_atomic(b.or_(number, pieces), _place(b, job, TICKET), "release", 8)
    b.branch(work)
    b.position_at_end(work)
    b.cbranch(_try_piece(b, job), work, wait)
    b.position_at_end(wait)
    done = b.load_atomic(_place(b, job, DONE), "acquire", 8)
    b.cbranch(b.icmp_signed("<", done, pieces), rest, end)
    b.position_at_end(rest)
    b.store(b.add(b.load(waits), integer(1)), waits)
    b.branch(work)  # a claim may have failed against another's, with pieces left
    b.position_at_end(end)
    b.ret(b.load(waits))


def _try_piece(b: ir.IRBuilder, job: ir.Value) -> ir.Value:
    """Claims a piece and does it; whether there was one."""
    claim, do, end = (b.function.append_basic_block() for _ in range(3))
    start = b.block
    ticket = b.load_atomic(_place(b, job, TICKET), "acquire", 8)
    left = b.and_(ticket, integer(PIECES_MASK))
    b.cbranch(b.icmp_signed("==", left, integer(0)), end, claim)
    b.position_at_end(claim)
    less = b.sub(ticket, integer(1))
    taken = b.cmpxchg(_place(b, job, TICKET), ticket, less, "acq_rel", "monotonic")
    b.cbranch(b.extract_value(taken, 1), do, end)
    b.position_at_end(do)
    rows, step = _word(b, job, ROWS), _word(b, job, STEP)
    first = b.mul(b.sub(left, integer(1)), step)
    past = b.add(first, step)
    last = b.select(b.icmp_signed("<", past, rows), past, rows)
    kernel_type = ir.FunctionType(ir.VoidType(), ARGUMENTS).as_pointer()
    arguments = []
    for index, kind in enumerate(ARGUMENTS[:-2]):
        value = _word(b, job, FIRST_ARGUMENT + index)
        arguments.append(value if kind is INT64 else b.inttoptr(value, kind))
    b.call(b.inttoptr(_word(b, job, KERNEL), kernel_type), [*arguments, first, last])
    b.atomic_rmw("add", _place(b, job, DONE), integer(1), "acq_rel")
    b.branch(end)
    b.position_at_end(end)
    worked = b.phi(ir.IntType(1))
    for block, value in ((start, 0), (claim, 0), (do, 1)):
        worked.add_incoming(ir.Constant(ir.IntType(1), value), block)
    return worked


def _function(
    module: ir.Module, name: str, returns: ir.Type
) -> tuple[ir.IRBuilder, tuple[ir.Value, ...]]:
    kinds = [INT64.as_pointer(), INT64]
    function = ir.Function(module, ir.FunctionType(returns, kinds), name)
    return ir.IRBuilder(function.append_basic_block()), function.args


def _place(b: ir.IRBuilder, job: ir.Value, word: int) -> ir.Value:
    return b.gep(job, [integer(word)])


def _word(b: ir.IRBuilder, job: ir.Value, word: int, value: ir.Value | None = None) -> ir.Value:
    if value is None:
        return b.load(_place(b, job, word))
    b.store_atomic(value, _place(b, job, word), "monotonic", 8)
    return value
