# SPDX-License-Identifier: Apache-2.0
"""Where the leaves of a chunkserver's index lie in its files.

Reads RocksDB's tables as far as dlblk writes them: block-based, not compressed, index entries of
one restart each.  For tests that change them on purpose.
"""
import os
import struct

FOOTER = struct.Struct("<IQ")
FOOTER_BYTES = 53
MAGIC = 0x88E241B785F4CFF7
KIND_DELETION, KIND_VALUE, KIND_MERGE = 0, 1, 2
CHUNK_HEAD = struct.Struct("<IIQII")  # crc, format, volume, segment, slot


class Value:
    """A value, or a part of one, and its place."""

    def __init__(self, path, key, order, kind, offset, length, block):
        self.path, self.key, self.order, self.kind = path, key, order, kind
        self.offset, self.length, self.block = offset, length, block


def varint(data, at):
    """(value, where it ends)."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def entries_end(data, first, length):
    """Where the entries of a block end, and its restarts begin."""
    restarts = struct.unpack_from("<I", data, first + length - 4)[0] & 0x7FFFFFFF
    return first + length - 4 * (restarts + 1)


def blocks_of(data):
    """(offset, length) of each data block of a table."""
    version, magic = FOOTER.unpack_from(data, len(data) - FOOTER.size)
    if magic != MAGIC or version != 5:
        raise ValueError("not a table of format 5")
    at = len(data) - FOOTER_BYTES + 1
    for _ in range(2):  # of the meta index
        _, at = varint(data, at)
    first, at = varint(data, at)
    length, at = varint(data, at)
    end = entries_end(data, first, length)
    at = first
    while at < end:
        shared, at = varint(data, at)
        key_bytes, at = varint(data, at)
        if shared != 0:
            raise ValueError("an index entry that is not whole")
        at += key_bytes
        offset, at = varint(data, at)
        bytes_, at = varint(data, at)
        yield offset, bytes_


def values_of_table(path):
    """All values of a table."""
    with open(path, "rb") as file:
        data = file.read()
    for first, length in blocks_of(data):
        at, end, key = first, entries_end(data, first, length), b""
        while at < end:
            shared, at = varint(data, at)
            key_bytes, at = varint(data, at)
            value_bytes, at = varint(data, at)
            key = key[:shared] + data[at:at + key_bytes]
            at += key_bytes
            order = struct.unpack("<Q", key[-8:])[0]
            yield Value(path, key[:-8], order >> 8, order & 255, at, value_bytes, (path, first))
            at += value_bytes


def live_values(directory, others):
    """What a get reads: of each key the newest value, and what was merged since; by key.

    Into others go the blocks with anything but leaves, be it of older versions: a start reads them all.
    """
    by_key = {}
    for name in os.listdir(directory):
        if name.endswith(".sst"):
            for value in values_of_table(os.path.join(directory, name)):
                by_key.setdefault(value.key, []).append(value)
                if value.key[:1] != b"L":
                    others.add(value.block)
    for values in by_key.values():
        values.sort(key=lambda value: -value.order)
        for i, value in enumerate(values):
            if value.kind != KIND_MERGE:
                del values[i + (value.kind == KIND_VALUE):]
                break
    return {key: values for key, values in by_key.items() if values}


def read_value(value):
    """Its bytes."""
    with open(value.path, "rb") as file:
        file.seek(value.offset)
        return file.read(value.length)


class Leaves:
    """Those of one index: which block of which file has them, and whose they are."""

    def __init__(self, directory):
        others = set()
        live = live_values(directory, others)
        chunks = {}
        for key, values in live.items():
            if key[:1] == b"C" and len(key) == 9:
                _, _, volume, segment, slot = CHUNK_HEAD.unpack_from(read_value(values[0]))
                chunks[key[1:9]] = (volume, segment, slot)
        self.in_block = {block: None for block in others}  # else leaves {(volume, segment, slot, leaf)}
        self.places = []    # (leaf, value)
        for key, values in live.items():
            is_leaf = key[:1] == b"L" and len(key) == 13 and key[1:9] in chunks
            leaf = chunks[key[1:9]] + (struct.unpack(">I", key[9:])[0],) if is_leaf else None
            for value in values:
                if leaf is None or self.in_block.get(value.block, set()) is None:
                    self.in_block[value.block] = None
                    continue
                self.in_block.setdefault(value.block, set()).add(leaf)
                self.places.append((leaf, value))
        self.places = [place for place in self.places if self.in_block[place[1].block] is not None]
