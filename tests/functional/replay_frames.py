#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records what clients send to a chunkserver, and sends it again later.

    replay_frames.py record LISTEN_PORT SERVER_PORT DIRECTORY    a proxy; a file for each connection
    replay_frames.py replay SERVER_PORT FILE...                  the same bytes again, on new connections

replay prints how many connections, frames and WRITEs were sent, and how many WRITEs were answered:
"connections=1 frames=40 writes=36 answers=36 refused=36".
"""
import os
import socket
import struct
import sys
import threading

HEADER = struct.Struct("<IIHHHHQIIIIQQQ")
WRITE, REPLY = 17, 1


def receive(source, count):
    """Exactly so many bytes, or None at the end of the stream."""
    data = bytearray()
    while len(data) < count:
        try:
            piece = source.recv(min(count - len(data), 1 << 20))
        except OSError:
            return None
        if not piece:
            return None
        data += piece
    return bytes(data)


def pass_on(source, sink, copy):
    """Bytes, until either side closes."""
    try:
        while True:
            data = source.recv(1 << 18)
            if not data:
                break
            if copy is not None:
                copy.write(data)
                copy.flush()
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def record(listen_port, server_port, directory):
    """Accepts until it is killed."""
    listener = socket.create_server(("127.0.0.1", listen_port))
    print("listening", flush=True)
    number = 0
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", server_port))
        except OSError:
            client.close()
            continue
        number += 1
        copy = open(os.path.join(directory, f"{number:03}"), "wb")
        threading.Thread(target=pass_on, args=(client, server, copy), daemon=True).start()
        threading.Thread(target=pass_on, args=(server, client, None), daemon=True).start()


def frames_of(data):
    """Whole frames: (opcode, bytes)."""
    at = 0
    while at + HEADER.size <= len(data):
        fields = HEADER.unpack_from(data, at)
        length = HEADER.size + fields[7] + fields[8]
        if at + length > len(data):
            return
        yield fields[2], data[at:at + length]
        at += length


def replay(port, paths):
    """One connection after the other; each frame waits for nothing but room."""
    counts = {"connections": 0, "frames": 0, "writes": 0, "answers": 0, "refused": 0}
    for path in paths:
        with open(path, "rb") as file:
            frames = list(frames_of(file.read()))
        connection = socket.create_connection(("127.0.0.1", port))
        connection.settimeout(10)
        counts["connections"] += 1

        def send(connection=connection, frames=frames):
            try:
                for _, data in frames:
                    connection.sendall(data)
            except OSError:
                pass

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        writes = sum(1 for opcode, _ in frames if opcode == WRITE)
        counts["frames"] += len(frames)
        counts["writes"] += writes
        while writes > 0:
            head = receive(connection, HEADER.size)
            if head is None:
                break
            fields = HEADER.unpack(head)
            if receive(connection, fields[7] + fields[8]) is None:
                break
            if fields[2] == WRITE and fields[3] & REPLY:
                writes -= 1
                counts["answers"] += 1
                counts["refused"] += fields[4] != 0
        connection.close()
        sender.join()
    print(" ".join(f"{name}={count}" for name, count in counts.items()))


if sys.argv[1] == "record":
    record(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
else:
    replay(int(sys.argv[2]), sys.argv[3:])
