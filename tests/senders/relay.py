"""A relay that writes down what a sender and the daemon say to each other: where the transcripts of docs/clients.md come from.

It listens while the daemon does, so that a sender meets what it would meet without it: a refused connection, or one that is reset.
"""

import gzip
import re
import socket
import struct
import threading
import zlib

from daemon import free_port


class Relay:
    def __init__(self, upstream, path):
        self.upstream = upstream
        self.address = f"127.0.0.1:{free_port()}"
        self.path, self.lock, self.seen = path, threading.Lock(), {}
        self.listener, self.connections = None, []

    def open(self):
        host, port = self.address.split(":")
        self.listener = socket.create_server((host, int(port)))
        threading.Thread(target=self.serve, args=(self.listener,), daemon=True).start()

    def close(self):
        """As the kernel does for a process that was killed."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self.lock:
            connections, self.connections = self.connections, []
        for connection in connections:
            reset(connection)

    def serve(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client):
        host, port = self.upstream.split(":")
        try:
            server = socket.create_connection((host, int(port)))
        except OSError:
            return reset(client)
        with self.lock:
            self.connections += [client, server]
        said = {"request": b"", "answer": b""}

        def pump(source, target, side):
            try:
                while part := source.recv(65536):
                    said[side] += part
                    if side == "answer":
                        self.exchanged(said)
                    target.sendall(part)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        back = threading.Thread(target=pump, args=(server, client, "answer"), daemon=True)
        back.start()
        pump(client, server, "request")
        back.join()
        client.close(), server.close()

    def exchanged(self, said):
        """Writes down the first exchanges of each status, and those with a wrong event, when an answer is whole."""
        while (request := message(said["request"])) and (answer := message(said["answer"])):
            said["request"], said["answer"] = request[2], answer[2]
            kind = answer[0].split(b" ", 2)[1], b'"errors"' in answer[1]
            with self.lock:
                if self.seen.setdefault(kind, 0) < 3:
                    self.seen[kind] += 1
                    with open(self.path, "a") as file:
                        file.write("\n".join((text(request), text(answer), "-" * 40, "")))


def reset(connection):
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    connection.close()


def message(octets):
    """Head, body and the rest, once the message is whole."""
    head, blank, rest = octets.partition(b"\r\n\r\n")
    if not blank:
        return None
    if head.startswith(b"HTTP/1.1 100"):
        return message(rest)
    if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        body = b""
        while True:
            size, line, rest = rest.partition(b"\r\n")
            if not line or len(rest) < (count := int(size.split(b";")[0], 16)) + 2:
                return None
            body, rest = body + rest[:count], rest[count + 2 :]
            if count == 0:
                return head, body, rest
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    length = int(length[1]) if length else 0
    return (head, rest[:length], rest[length:]) if len(rest) >= length else None


def text(message):
    head, body, _ = message
    coded = re.search(rb"content-encoding: *(\w+)", head, re.IGNORECASE)
    if coded:
        body = gzip.decompress(body) if coded[1] == b"gzip" else zlib.decompress(body) if coded[1] == b"deflate" else body
    return f"{head.decode(errors='replace')}\n\n{body.decode(errors='backslashreplace')}\n".replace("\r\n", "\n")
