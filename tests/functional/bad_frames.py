#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sends a daemon what no honest peer sends, and wants each refused in the way docs/protocol.md says.

    bad_frames.py PORT CLUSTER_ID [DISK_UUID]

The ids are text: hexadecimal digits, with or without dashes; DISK_UUID is for a chunkserver.  Prints one
TAP line per case, without numbers, and ends with status 1 if one has failed.
"""
import os
import random
import socket
import struct
import sys

HEADER = struct.Struct("<IIHHHHQIIIIQQQ")
MAGIC = 0x314B4C44
HELLO, PING, WRITE, VOLUME_LIST = 1, 2, 17, 65
REPLY = 1
CLUSTER_MISMATCH, VERSION_UNSUPPORTED, OPCODE_UNKNOWN = 27, 26, 24

port = int(sys.argv[1])
cluster_id = bytes.fromhex(sys.argv[2].replace("-", ""))
disk_uuid = bytes.fromhex(sys.argv[3].replace("-", "")) if len(sys.argv) > 3 else b""
failures = 0


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


def header(opcode, request_id, body_bytes, body_crc, payload_bytes=0, flags=0, magic=MAGIC, reserved=0):
    """A frame's header with a valid CRC."""
    rest = HEADER.pack(0, magic, opcode, flags, 0, reserved, request_id, body_bytes, payload_bytes, body_crc,
                       0, 0, 0, 0)[4:]
    return struct.pack("<I", crc32c(rest)) + rest


def frame(opcode, request_id, body=b"", **fields):
    """Header and body."""
    return header(opcode, request_id, len(body), crc32c(body) if body else 0, **fields) + body


def varint(number):
    """As protobuf writes it."""
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field_bytes(number, data):
    """A protobuf field of bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def field_number(number, value):
    """A protobuf field of a number."""
    return varint(number << 3) + varint(value)


def hello(version_min=1, version_max=1, cluster=None, role=1):
    """Body of a HELLO, of a client."""
    return (field_number(1, version_min) + field_number(2, version_max) +
            field_bytes(3, cluster_id if cluster is None else cluster) + field_number(4, role) +
            field_bytes(7, b"bad_frames") + (field_bytes(8, disk_uuid) if disk_uuid else b"") +
            field_bytes(9, os.urandom(16)))


def connect():
    """A new connection, that waits at most some seconds."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(8)
    return connection


def receive(connection, count):
    """So many bytes, fewer at the end of the stream."""
    data = b""
    while len(data) < count:
        try:
            piece = connection.recv(count - len(data))
        except ConnectionResetError:
            break
        if not piece:
            break
        data += piece
    return data


def reply(connection):
    """(status, request id, body) of the next frame, or None: closed."""
    head = receive(connection, HEADER.size)
    if len(head) < HEADER.size:
        return None
    fields = HEADER.unpack(head)
    body = receive(connection, fields[7] + fields[8])
    return fields[4], fields[6], body


def closed(connection):
    """True if nothing but the end comes, after at most one error reply."""
    answer = reply(connection)
    return answer is None or (answer[0] != 0 and reply(connection) is None)


def greeted():
    """A connection after a good HELLO."""
    connection = connect()
    connection.sendall(frame(HELLO, 1, hello()))
    answer = reply(connection)
    assert answer is not None and answer[0] == 0, f"a good HELLO is refused: {answer}"
    return connection


def lives(connection, request_id=77):
    """The stream is in step: a PING is answered."""
    connection.sendall(frame(PING, request_id))
    answer = reply(connection)
    return answer is not None and answer[0] == 0 and answer[1] == request_id


def case(description, good):
    """Prints a TAP line."""
    global failures
    failures += not good
    print(("ok - " if good else "not ok - ") + description, flush=True)


def sends(data, connect_first=connect):
    """True if the connection is closed after this."""
    connection = connect_first()
    try:
        connection.sendall(data)
        return closed(connection)
    except (BrokenPipeError, ConnectionResetError):
        return True


def before_hello():
    """What comes instead of a HELLO."""
    good = frame(HELLO, 1, hello())
    case("random bytes: closed", sends(random.Random(1).randbytes(64)))
    case("a web browser: closed", sends(b"GET / HTTP/1.1\r\n" + b"Accept: all\r\n" * 9 + b"\r\n"))
    case("another magic: closed", sends(frame(HELLO, 1, hello(), magic=0x12345678)))
    bad_crc = bytearray(good)
    bad_crc[20] ^= 1
    case("a flipped bit in the header: closed", sends(bytes(bad_crc)))
    bad_body = bytearray(good)
    bad_body[70] ^= 1
    case("a flipped bit in the body: closed", sends(bytes(bad_body)))
    case("reserved bits in the header: closed", sends(frame(HELLO, 1, hello(), reserved=1)))
    case("a body of 4 GiB: closed", sends(header(HELLO, 1, 0xFFFFFFFF, 0)))
    case("a payload of 2 MiB: closed", sends(header(WRITE, 1, 0, 0, payload_bytes=2 << 20)))
    case("a request before HELLO: refused", sends(frame(VOLUME_LIST, 1)))
    case("a reply before HELLO: refused", sends(frame(HELLO, 1, hello(), flags=REPLY)))
    case("a HELLO that is no message: refused", sends(frame(HELLO, 1, b"\xff\xff\xff\xff")))
    half = connect()
    half.sendall(good[:30])
    half.close()
    half = connect()
    half.sendall(good[:80])
    half.close()
    case("half a header, half a body: the daemon goes on", greeted() is not None)


def hellos():
    """HELLOs that don't fit."""
    connection = connect()
    connection.sendall(frame(HELLO, 5, hello(cluster=b"\x42" * 16)))
    answer = reply(connection)
    case("another cluster id: refused by its number",
         answer is not None and answer[0] == CLUSTER_MISMATCH and answer[1] == 5)
    text = answer[2].decode("utf-8", "replace").replace("-", "") if answer else ""
    case("the error names both cluster ids", "42" * 16 in text and cluster_id.hex() in text)
    case("and the connection is closed", reply(connection) is None)
    connection = connect()
    connection.sendall(frame(HELLO, 6, hello(version_min=1000, version_max=2000)))
    answer = reply(connection)
    case("only versions of the future: refused by its number", answer is not None and answer[0] == VERSION_UNSUPPORTED)
    case("a role that there isn't: refused", sends(frame(HELLO, 1, hello(role=99))))
    case("a range from 9 to 2: refused", sends(frame(HELLO, 1, hello(version_min=9, version_max=2))))
    case("a cluster id of 3 bytes: refused", sends(frame(HELLO, 1, hello(cluster=b"abc"))))


def after_hello():
    """On a connection that is open."""
    connection = greeted()
    connection.sendall(frame(999, 9))
    answer = reply(connection)
    case("an unknown opcode: answered by its number", answer is not None and answer[0] == OPCODE_UNKNOWN and answer[1] == 9)
    case("and the stream stays in step", lives(connection))
    connection.sendall(frame(999, 10, b"body" * 100))
    answer = reply(connection)
    case("an unknown opcode with a body: answered", answer is not None and answer[0] == OPCODE_UNKNOWN)
    case("and the stream stays in step", lives(connection))
    connection.sendall(frame(PING, 1234, flags=REPLY))
    case("a reply that nobody asked for: dropped", lives(connection))
    case("random bytes in the middle: closed", sends(os.urandom(256), greeted))
    case("a body that is too large in the middle: closed", sends(header(PING, 1, 1 << 30, 0), greeted))
    connection = greeted()
    connection.sendall(frame(HELLO, 2, hello()))
    answer = reply(connection)
    case("a second HELLO: refused", answer is None or answer[0] != 0)


def fuzz():
    """Good frames with a few bytes changed, many times; the daemon must go on."""
    source = random.Random(7)
    tried = 0
    for _ in range(300):
        data = bytearray(frame(HELLO, 1, hello()) + frame(source.choice([PING, 16, 17, 18, 32, 33, 48, 64, 72, 76]), 2,
                                                          source.randbytes(source.randrange(200))))
        if source.randrange(3):
            data[source.randrange(len(data))] = source.randrange(256)
        connection = connect()
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        connection.close()
        tried += 1
    case(f"{tried} connections with changed frames: the daemon goes on", tried == 300 and lives(greeted()))


def crowd():
    """Many connections that say nothing."""
    silent = [connect() for _ in range(300)]
    case("300 silent connections: others are served", lives(greeted()))
    for connection in silent:
        connection.close()


before_hello()
hellos()
after_hello()
fuzz()
crowd()
sys.exit(1 if failures else 0)
