"""Senders while they run: something that events are given to, and that is stopped in order."""

import json
import queue
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

from daemon import ENDS_WITH_US, PATIENCE, wait_for


class Process:
    """A process with a log of its own, which ends with this one."""

    def __init__(self, command, folder, name="sender", **options):
        self.path = folder / f"{name}.log"
        self.log = open(self.path, "ab")
        options = {"stdin": subprocess.DEVNULL, "stdout": self.log, **options}
        self.process = subprocess.Popen([*ENDS_WITH_US, *command], cwd=folder, stderr=self.log, **options)

    def said(self):
        return self.path.read_text(errors="replace")[-3000:]

    def refused(self):
        """The numbers of which it was told that they are wrong."""
        return []

    def settle(self):
        """Until it has sent what it was given, if it keeps nothing. Such senders do it at once."""
        time.sleep(0.5)

    def finish(self):
        """A stop in order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Program(Process):
    """A program that reads chunks from standard input, and ends with it when all is sent. It prints lists of refused numbers."""

    def __init__(self, command, folder, **options):
        super().__init__(command, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
        # It may stand still for as long as the daemon does.
        self.chunks, self.told = queue.SimpleQueue(), []
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.write, self.read)]
        for thread in self.threads:
            thread.start()

    def write(self):
        try:
            while (chunk := self.chunks.get()) is not None:
                self.process.stdin.write(json.dumps(chunk).encode() + b"\n")
                self.process.stdin.flush()
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def read(self):
        for line in self.process.stdout:
            self.told += json.loads(line)

    def give(self, chunk):
        if self.process.poll() is not None:
            raise AssertionError(f"the sender ended with {self.process.returncode}: {self.said()}")
        self.chunks.put(chunk)

    def finish(self):
        self.chunks.put(None)
        if self.process.wait(2 * PATIENCE) != 0:
            raise AssertionError(f"the sender ended with {self.process.returncode}: {self.said()}")
        self.threads[1].join(PATIENCE)

    def refused(self):
        return self.told


class Lines(Process):
    """A shipper that takes lines of text over TCP."""

    def __init__(self, command, folder, port, line, **options):
        super().__init__(command, folder, **options)
        self.line = line
        self.socket = connected(lambda: socket.create_connection(("127.0.0.1", port), PATIENCE), self)

    def give(self, chunk):
        self.socket.sendall("".join(self.line(given) + "\n" for given in chunk).encode())

    def finish(self):
        self.socket.close()
        super().finish()


class Collectd(Process):
    def __init__(self, command, folder, **options):
        super().__init__(command, folder, **options)
        self.path_of_socket = str(folder / "collectd.sock")

        def connect():
            client = socket.socket(socket.AF_UNIX)
            client.connect(self.path_of_socket)
            return client

        self.socket = connected(connect, self)
        self.answers = self.socket.makefile()

    def ask(self, line):
        self.socket.sendall(f"{line}\n".encode())
        answer = self.answers.readline()
        if not answer.startswith("0 "):
            raise AssertionError(f"{line}: {answer}")

    def give(self, chunk):
        for given in chunk:
            host = "h" * 120 if given["wrong"] else "host-1"
            self.ask(f'PUTVAL "{host}/orders/gauge-{given["number"]}" interval=10 N:1')

    def settle(self):
        # What it holds back is sent, or lost.
        time.sleep(0.3)
        self.ask("FLUSH plugin=write_http/ingestd")
        time.sleep(0.5)


class Alertmanager(Process):
    def __init__(self, command, folder, port, **options):
        super().__init__(command, folder, **options)
        self.url = f"http://127.0.0.1:{port}/api/v2/alerts"

        def ask():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=PATIENCE):
                return True

        connected(ask, self)

    def give(self, chunk):
        alerts = [
            {
                "labels": {"alertname": given["number"], "service": "shop"},
                "annotations": {"padding": "x" * 12_000} if given["wrong"] else {},
                "endsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600)),
            }
            for given in chunk
        ]
        request = urllib.request.Request(self.url, json.dumps(alerts).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=PATIENCE).close()


def connected(connect, process):
    """What `connect` returns, as soon as the process takes it. A process that takes none is ended."""

    def attempt():
        if process.process.poll() is not None:
            raise AssertionError(f"the sender ended with {process.process.returncode}: {process.said()}")
        try:
            return connect()
        except (OSError, urllib.error.URLError):
            return None

    try:
        return wait_for("the sender listens", attempt)
    except AssertionError as error:
        process.kill()
        raise AssertionError(f"{error}\n{process.said()}") from None
