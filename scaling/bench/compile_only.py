"""`armscale bench scan --compile-only sm_90`: the Triton kernels compiled without a GPU, and their machine code.

Triton's wheel brings ptxas and cuobjdump. Counts are of the innermost loop that holds the exponentials of the states,
divided by the state steps (token, channel and state) that a thread takes in one turn of it; a convolution has no loop
and is counted whole, divided by the outputs a thread writes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.errors import UserError

TOKENS = ("u", "delta", "z", "B", "C", "out", "ungated", "dout", "du", "ddelta", "dz", "x", "dx")
"""Arguments that hold tokens, or B and C of tokens, in bfloat16; other tensors are float32, and `order` is int32."""
SIZES = ("length", "per_group", "batch", "channels", "groups")
STATES, CHANNELS = 16, 768


@dataclass(frozen=True)
class KernelReport:
    kernel: str
    length: int
    directions: int
    registers: int  # a thread
    local_bytes: int  # of local memory a thread: spilled registers
    instructions: float  # a state step, as the three below
    shuffles: float
    exponentials: float  # of the exponent unit, ex2 alone
    float_operations: float


@dataclass(frozen=True)
class _Kernel:
    function: Any
    constants: dict[str, Any]
    warps: int
    steps: float  # state steps, or outputs, of a thread in one turn of the loop


def _kernels(length: int, directions: int) -> list[_Kernel]:
    """As the model launches them: with four directions the gate is left to their mean."""
    import triton.language as tl

    from models.scan import triton_backward, triton_conv, triton_conv_kernels, triton_forward, triton_scan

    ordered = directions > 1
    wide = CHANNELS * directions
    scan = {"channels": wide, "u_token": wide, "delta_token": wide, "z_token": 2 * wide}
    scan |= {"state": STATES, "matrix_token": CHANNELS // 16 + 2 * STATES}  # beside the time step's low rank
    scan |= {
        "SOFTPLUS": True,
        "GATED": not ordered,
        "ORDERED": ordered,
        "WHOLE": True,
        "CUT": length % triton_scan.EVERY != 0,
    }
    scan |= {"N": STATES, "EVERY": triton_scan.EVERY}
    block = triton_scan.forward_block(CHANNELS)
    back = triton_scan.BACKWARD_BLOCK
    conv = {"SILU": True, "ORDERED": ordered, "WIDTH": 4}
    tile = {"TOKENS": triton_conv.TOKENS, "CHANNELS": triton_conv.CHANNELS}
    walk = {"TOKENS": triton_conv.BACKWARD_TOKENS, "CHANNELS": triton_conv.BACKWARD_CHANNELS}
    return [
        *(
            _Kernel(kernel, scan | {"BLOCK": wide} | rest, 1, STATES * wide / 32 * triton_scan.EVERY)
            for kernel, wide, rest in (
                (triton_forward.scan_forward, block, {"KEEP": True}),
                (triton_backward.scan_backward, back, {"DTYPE": tl.bfloat16, "groups": directions}),
            )
        ),
        *(
            _Kernel(kernel, conv | shape, 4, shape["TOKENS"] * shape["CHANNELS"] / (32 * 4))
            for kernel, shape in ((triton_conv_kernels.conv_forward, tile), (triton_conv_kernels.conv_backward, walk))
        ),
    ]


def _compile(kernel: _Kernel, architecture: int, sizes: dict[str, int]) -> Any:
    """As a launch would with these sizes: pointers, and integers that divide by 16, are declared to do so."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for position, parameter in enumerate(kernel.function.params):
        name = parameter.name
        if name in kernel.constants:
            signature[name] = "constexpr"
            continue
        is_size = name in SIZES or name.endswith(("_batch", "_token", "_group"))
        pointer = "*i32" if name == "order" else "*bf16" if name in TOKENS else "*fp32"
        signature[name] = "i32" if is_size else pointer
        if not is_size or sizes.get(name, 16) % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel.function, signature, constexprs=kernel.constants, attrs=attributes)
    options = {"num_warps": kernel.warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """Machine code and resource usage, by the tools of Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        code, usage = (
            subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "-res-usage")
        )
    return code, usage


def innermost_loop(code: str) -> list[str]:
    """Instructions of the loop with the most exponentials among loops that hold no other, or all code."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?(.*?);", code, re.MULTILINE)
    program = [(int(address, 16), text.strip()) for address, text in lines]
    spans = []
    for address, text in program:
        target = re.match(r"BRA.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            spans.append((int(target[1], 16), address))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    bodies = [[text for address, text in program if low <= address <= high] for low, high in inner]
    best = max(bodies, key=lambda body: sum("MUFU.EX2" in text for text in body), default=[])
    return best if any("MUFU.EX2" in text for text in best) else [text for _, text in program if text != "NOP"]


def _report(kernel: _Kernel, architecture: int, length: int, directions: int) -> KernelReport:
    sizes = {
        "length": length,
        "channels": CHANNELS * directions,
        "per_group": CHANNELS,
        "groups": directions,
        "batch": 256,
    }
    code, usage = _disassemble(_compile(kernel, architecture, sizes).asm["cubin"])
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    body = innermost_loop(code)
    counts = Counter(text.split()[0].split(".")[0] for text in body)
    return KernelReport(
        kernel=kernel.function.__name__,
        length=length,
        directions=directions,
        registers=found["REG"],
        local_bytes=found["STACK"] + found["LOCAL"],
        instructions=len(body) / kernel.steps,
        shuffles=counts["SHFL"] / kernel.steps,
        exponentials=sum("MUFU.EX2" in text for text in body) / kernel.steps,
        float_operations=sum(counts[name] for name in ("FFMA", "FMUL", "FADD")) / kernel.steps,
    )


def report(target: str) -> dict[str, Any]:
    """Every kernel at pretraining's length in one direction and at finetuning's in one and four."""
    match = re.fullmatch(r"sm_(\d{2,3})", target)
    if match is None:
        raise UserError("--compile-only", target, "a CUDA architecture such as sm_90")
    cases = [(128, 1), (197, 1), (197, 4)]
    rows = [
        asdict(_report(kernel, int(match[1]), length, directions))
        for length, directions in cases
        for kernel in _kernels(length, directions)
    ]
    return {"bench": "scan", "compile_only": target, "state": STATES, "channels": CHANNELS, "kernels": rows}
