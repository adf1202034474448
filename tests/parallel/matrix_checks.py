"""Run by test_matrix.py in a process of its own, with 8 virtual devices: a line per mesh that agrees with one device.

matrix_checks.py DIRECTORY MESH ...; a mesh is data x fsdp x tensor, or replica x data x fsdp x tensor: 2x2x2
"""

import sys
from pathlib import Path

import seq2seq_jax as s2s
from tests.parallel import steps

WORK = Path(sys.argv[1])
AXES = ("replica", "data", "fsdp", "tensor")

s2s.save_pretrained(WORK / "pair", steps.make_pair())
one = steps.take(s2s.from_pretrained(WORK / "pair"))
for layout in sys.argv[2:]:
    sizes = [int(size) for size in layout.split("x")]
    pair, mesh = steps.on_mesh(WORK / "pair", **dict(zip(AXES[-len(sizes) :], sizes)))
    many = steps.take(pair, mesh)
    steps.same(many, one)
    steps.placed_by_the_table(pair, mesh, many)
    print("held:", layout, flush=True)
    if mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["replica"] == 4:
        steps.same(steps.take(pair, mesh, accumulation=4), one)
        print("held:", layout, "accumulated", flush=True)
