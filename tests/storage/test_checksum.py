"""Both CRC-32C implementations, the residue, the chain."""

from hypothesis import given
from hypothesis import strategies as st

from raftdb.storage import checksum
from raftdb.storage.checksum import RESIDUE, chain_of, crc32c, crc32c_extend

u64 = st.integers(0, 2**64 - 1)


def test_the_check_value_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@given(st.binary(max_size=3000), st.binary(max_size=200))
def test_both_libraries_agree(one, other):
    value, extend = checksum.crcmod_functions()
    fast = checksum.google_functions()
    assert fast is not None, "the extra `fast` belongs to the test environment"
    assert value(one) == fast[0](one) == crc32c(one)
    assert extend(value(one), other) == fast[1](fast[0](one), other) == crc32c(one + other)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=300))
def test_data_that_ends_with_its_crc_has_one_residue(start, data):
    crc = crc32c_extend(start, data)
    assert crc32c_extend(start, data + crc.to_bytes(4, "little")) == RESIDUE


@given(u64, u64, u64, st.integers(0, 255), u64, u64, st.binary(max_size=50), st.integers(0, 63))
def test_the_chain_depends_on_everything(previous, index, term, kind, stamp, seed, payload, bit):
    base = chain_of(previous, index, term, kind, stamp, seed, payload)
    flip = 1 << bit
    assert 0 <= base < 2**64
    assert chain_of(previous ^ flip, index, term, kind, stamp, seed, payload) != base
    assert chain_of(previous, index ^ flip, term, kind, stamp, seed, payload) != base
    assert chain_of(previous, index, term ^ flip, kind, stamp, seed, payload) != base
    assert chain_of(previous, index, term, kind ^ (1 << bit % 8), stamp, seed, payload) != base
    assert chain_of(previous, index, term, kind, stamp ^ flip, seed, payload) != base
    assert chain_of(previous, index, term, kind, stamp, seed ^ flip, payload) != base
    assert chain_of(previous, index, term, kind, stamp, seed, payload + b"x") != base
