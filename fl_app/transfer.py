"""Differences of a model's values in few bits, and back; what was rounded off is carried over to the next time.

A tensor travels as one of bytes: its values in blocks of 256, each value a whole number from -L to L times its block's
scale, L = 2^(bits - 1) - 1. First stand the scales (2 bytes each), then the numbers plus L: with 8 bits a byte each;
with fewer as the Huffman code of a raw deflate stream (RFC 1951), of 3 bits about 2.2, since most numbers are small.
Tensors of one dimension (biases, normalisation with its running statistics) are few, and a variance must not become
negative: they travel as they are.

Carried over ("error feedback"): Seide, Fu, Droppo, Li, Yu, Interspeech 2014, section 3.1; for both directions as here:
Tang, Yu, Lian, Zhang, Liu, ICML 2019 (DoubleSqueeze), algorithm 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from isal import isal_zlib
from isal.igzip_lib import IsalError

from fl_app.errors import FederationError

BLOCK = 256  # values with a scale of their own: 1/16 bit a value
_SCALE = torch.bfloat16  # float32's range
Values = dict[str, torch.Tensor]
Shapes = Mapping[str, Sequence[int]]


class ModelNotHeldError(Exception):
    """A model came as its change since one that this site does not hold: it is to be sent whole."""


class Rounding:
    """Rounds one stream of differences, such as a site's updates.

    Args:
        bits: of each value, 2 to 8.

    Attributes:
        rest: what was rounded off so far, by name; part of what a restart needs.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.rest: Values = {}

    def encode(self, differences: Mapping[str, torch.Tensor]) -> Values:
        """The next differences, and what was rounded off before, as they travel."""
        owed = {name: value + self.rest[name] if name in self.rest else value for name, value in differences.items()}
        packed = {name: _pack(value.float(), self.bits) if value.dim() > 1 else value for name, value in owed.items()}
        sent = decode(packed, {name: value.shape for name, value in owed.items()}, self.bits)
        for name, value in owed.items():
            if value.dim() > 1:
                # of a training that has diverged nothing is carried over
                self.rest[name] = sent[name].neg_().add_(value).nan_to_num_(0.0, 0.0, 0.0)
        return packed


def decode(packed: Mapping[str, torch.Tensor], shapes: Shapes, bits: int) -> Values:
    """The differences that were encoded, float32.

    Args:
        packed: what `Rounding.encode` made.
        shapes: of the values by name; a name that is not among them is passed on as it is.
        bits: of each value.

    Raises:
        FederationError: it is nothing that `Rounding.encode` makes of such shapes.
    """
    return {
        name: _unpack(name, value, shapes[name], bits) if len(shapes.get(name, ())) > 1 else value
        for name, value in packed.items()
    }


def _pack(value: torch.Tensor, bits: int) -> torch.Tensor:
    largest, flat = 2 ** (bits - 1) - 1, value.reshape(-1)
    blocks = torch.zeros(math.ceil(len(flat) / BLOCK), BLOCK)
    blocks.view(-1)[: len(flat)] = flat
    scales = (blocks.abs().amax(1, keepdim=True) / largest).to(_SCALE)
    numbers = blocks.div_(scales.float()).nan_to_num_(0.0).round_().clamp_(-largest, largest)
    whole = numbers.add_(largest).view(-1)[: len(flat)].to(torch.uint8)
    coded = whole if bits == 8 else _deflate(whole)
    return torch.cat([scales.view(torch.uint8).reshape(-1), coded])


def _unpack(name: str, packed: torch.Tensor, shape: Sequence[int], bits: int) -> torch.Tensor:
    largest, count = 2 ** (bits - 1) - 1, math.prod(shape)
    blocks = math.ceil(count / BLOCK)
    head = blocks * _SCALE.itemsize
    fits = isinstance(packed, torch.Tensor) and packed.dtype == torch.uint8 and packed.dim() == 1
    if fits and len(packed) >= head:
        whole = packed[head:] if bits == 8 else _inflate(packed[head:], count)
        if len(whole) == count and int(whole.max()) <= 2 * largest:
            numbers = torch.empty(blocks, BLOCK)
            numbers[-1] = 0
            numbers.view(-1)[:count] = whole
            numbers.sub_(largest).mul_(packed[:head].clone().view(_SCALE).float()[:, None])
            return numbers.view(-1)[:count].reshape(tuple(shape))
    raise FederationError(f"{name} is not {count} values of {bits} bits and their scales (federation.transfer_bits)")


def _deflate(numbers: torch.Tensor) -> torch.Tensor:
    """Their Huffman code alone: nothing in them repeats that would be worth looking for."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS, strategy=zlib.Z_HUFFMAN_ONLY)
    return _bytes(stream.compress(numbers.numpy().data) + stream.flush())


def _inflate(coded: torch.Tensor, count: int) -> torch.Tensor:
    """What was deflated; nothing if it is no such stream, and never more than one number too many."""
    stream = isal_zlib.decompressobj(-zlib.MAX_WBITS)  # reads Huffman codes in half of zlib's time
    try:
        numbers = stream.decompress(coded.numpy().data, count + 1)
    except cast(type[Exception], IsalError):  # its stubs call it an instance
        numbers = b""
    return _bytes(numbers if stream.eof and not stream.unused_data else b"")


def _bytes(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(content), np.uint8))
