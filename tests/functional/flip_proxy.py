#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Passes connections on to a chunkserver, and flips a bit now and then.

    flip_proxy.py LISTEN_PORT SERVER_PORT STATE_FILE

STATE_FILE holds one line "WHAT EVERY": WHAT is none, write (the payload of WRITE requests, after the
client computed its checksums) or read (the payload of replies to READ, after the server sent them);
every EVERY-th frame of that kind gets one bit flipped.  It is read again for each frame.  Each flip is
printed as a line.
"""
import random
import socket
import struct
import sys
import threading

HEADER = struct.Struct("<IIHHHHQIIIIQQQ")
READ, WRITE, REPLY = 16, 17, 1
assert HEADER.size == 64

listen_port, server_port, state_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
lock = threading.Lock()
counts = {"write": 0, "read": 0}


def is_due(kind):
    """Whether this frame is one that gets a flipped bit."""
    try:
        with open(state_file, encoding="ascii") as file:
            what, every = file.read().split()
    except (OSError, ValueError):
        return False
    if what != kind:
        return False
    with lock:
        counts[kind] += 1
        return counts[kind] % int(every) == 0


def receive(source, count):
    """Exactly so many bytes, or None at the end of the stream."""
    data = bytearray()
    while len(data) < count:
        piece = source.recv(min(count - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return data


def pass_on(source, sink):
    """Frame after frame, until either side closes."""
    try:
        while True:
            header = receive(source, HEADER.size)
            if header is None:
                break
            fields = HEADER.unpack(bytes(header))
            opcode, flags, body_bytes, payload_bytes = fields[2], fields[3], fields[7], fields[8]
            body = receive(source, body_bytes)
            payload = receive(source, payload_bytes)
            if body is None or payload is None:
                break
            kind = "write" if opcode == WRITE and not flags & REPLY else ""
            kind = "read" if opcode == READ and flags & REPLY else kind
            if kind and payload_bytes and is_due(kind):
                bit = random.randrange(payload_bytes * 8)
                payload[bit // 8] ^= 1 << (bit % 8)
                print(f"flipped {kind} bit {bit} of {payload_bytes} bytes", flush=True)
            sink.sendall(header + body + payload)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def main():
    """Accepts until it is killed."""
    listener = socket.create_server(("127.0.0.1", listen_port))
    print("listening", flush=True)
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", server_port))
        except OSError:
            client.close()
            continue
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=pass_on, args=(client, server), daemon=True).start()
        threading.Thread(target=pass_on, args=(server, client), daemon=True).start()


main()
