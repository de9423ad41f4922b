#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Changes a chunkserver's disk as no chunkserver would, with checksums that fit where it says so.

    bad_disk.py version DISK NUMBER    both superblocks carry another format version, and are valid
    bad_disk.py journal DISK           one bit flips in the records of a journal block that the next start
                                       replays, and that has others behind it

DISK is described on standard input, by "dlblk-disk inspect --json".  Prints what it changed.
"""
import json
import struct
import sys

JOURNAL_HEADER = struct.Struct("<IIHHHH16sQQQQIIII")
UNIT = 4096
assert JOURNAL_HEADER.size == 80


def make_table():
    """CRC-32C, bit by bit."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = make_table()


def crc32c(data):
    """Castagnoli."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def varint(data, at):
    """(value, where it ends)."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def set_version(file, description, version):
    """In each copy: the header's magic and length stay, the message gets another number and its CRC."""
    changed = 0
    for copy in description["superblocks"]:
        file.seek(copy["offset_bytes"])
        header = file.read(12)
        message = bytearray(file.read(struct.unpack_from("<I", header, 8)[0]))
        at = 5  # behind the CRC
        while message[at] >> 3 != 3:
            assert message[at] & 7 == 0, "only numbers come before the version"
            _, at = varint(message, at + 1)
        assert message[at + 1] < 128 and version < 128
        message[at + 1] = version
        message[1:5] = struct.pack("<I", crc32c(header + message[5:]))
        file.seek(copy["offset_bytes"])
        file.write(header + message)
        changed += 1
    print(f"{changed} superblocks of version {version}")


def flip_in_journal(file, description):
    """In the middle of what is replayed."""
    layout = description["superblocks"][0]["superblock"]["layout"]
    blocks = []
    units = layout["journal_bytes"] // UNIT
    for unit in range(units):
        file.seek(layout["journal_offset"] + unit * UNIT)
        header = JOURNAL_HEADER.unpack(file.read(JOURNAL_HEADER.size))
        (lsn, mark, tail, body_bytes) = (header[8], header[9], header[10], header[12])
        if header[6].hex() == description["superblocks"][0]["superblock"]["disk"].replace("-", "") and \
                lsn % units == unit and body_bytes > 0:
            blocks.append((lsn, mark, tail, unit, body_bytes))
    blocks.sort()
    newest = blocks[-1]
    replayed = [block for block in blocks if newest[2] <= block[0] < newest[1]]
    assert len(replayed) >= 8, f"only {len(replayed)} of {len(blocks)} blocks are replayed"
    lsn, _, _, unit, body_bytes = replayed[len(replayed) * 3 // 4]
    place = layout["journal_offset"] + unit * UNIT + JOURNAL_HEADER.size + body_bytes // 2
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ 16]))
    print(f"a bit of journal block {lsn}, with {len(replayed)} to replay up to {newest[0]}")


def main():
    """The command line."""
    description = json.load(sys.stdin)
    with open(sys.argv[2], "r+b") as file:
        if sys.argv[1] == "version":
            set_version(file, description, int(sys.argv[3]))
        else:
            flip_in_journal(file, description)


if __name__ == "__main__":
    main()
