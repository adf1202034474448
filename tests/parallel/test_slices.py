"""Meshes over several slices, of devices that are not there."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from seq2seq_jax.parallel.mesh import _over_slices, make_mesh, slice_shapes

SIZES = ("replica", "data", "fsdp", "tensor")


def devices(*slices):
    """So many devices of each slice, not in order."""
    found = [
        SimpleNamespace(id=10 * index + i, slice_index=index, process_index=index, platform="gpu", device_kind="none")
        for index, count in enumerate(slices)
        for i in range(count)
    ]
    return found[::-1]


@pytest.mark.parametrize(
    ("sizes", "slices", "across"),
    [
        ((2, 1, 4, 2), 2, (2, 1, 1, 1)),
        ((4, 2, 4, 1), 2, (2, 1, 1, 1)),
        ((1, 4, 2, 2), 2, (1, 2, 1, 1)),
        ((2, 2, 4, 1), 4, (2, 2, 1, 1)),
        ((3, 2, 2, 1), 2, (1, 2, 1, 1)),
        ((1, 1, 8, 2), 4, (1, 1, 4, 1)),
        ((1, 1, 1, 1), 1, (1, 1, 1, 1)),
    ],
)
def test_shapes(sizes, slices, across):
    """replica goes over slices before data, data before fsdp."""
    inside, found = slice_shapes(dict(zip(SIZES, sizes)), slices)
    assert found == across and tuple(np.multiply(inside, across)) == sizes


def test_tensor_stays_in_a_slice():
    with pytest.raises(ValueError, match=r"'tensor': 4\} do not go over 2 slices: replica x data x fsdp is 1, and must"
                       r" be a multiple of 2 \(tensor stays in a slice\); give replica=2"):  # fmt: skip
        make_mesh(tensor=4, devices=devices(2, 2))
    with pytest.raises(ValueError, match="x fsdp is 6, and must be a multiple of 4"):
        slice_shapes(dict(zip(SIZES, (1, 6, 1, 2))), 4)


def test_slices_of_unequal_size():
    with pytest.raises(ValueError, match="slice 0 has 3, slice 1 has 1; give devices= of equal slices"):
        make_mesh(data=4, devices=devices(3, 1))


@pytest.mark.parametrize("sizes", [(2, 1, 2, 2), (1, 4, 1, 2), (1, 1, 4, 2), (2, 2, 2, 1)])
def test_only_the_outer_axis_leaves_a_slice(sizes):
    found = devices(4, 4)
    grid = _over_slices(dict(zip(SIZES, sizes)), found, Counter(device.slice_index for device in found))
    assert grid.shape == sizes and {device.id for device in grid.flat} == {0, 1, 2, 3, 10, 11, 12, 13}
    slices = np.vectorize(lambda device: device.slice_index)(grid)
    outer = next(i for i, size in enumerate(sizes) if size % 2 == 0)
    first, second = np.split(slices, 2, axis=outer)
    assert (first == 0).all() and (second == 1).all()
