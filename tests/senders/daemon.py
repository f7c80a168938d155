"""The built daemon in a folder and on ports of its own, and what it holds in the end."""

import base64
import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

PATIENCE = 60
# The kernel ends a process with the one that started it.
ENDS_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]
ROOMY, FULL = '"8GiB"', '"1B"'


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, ask, patience=PATIENCE, every=0.05):
    deadline = time.monotonic() + patience
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not in {patience} s")
        time.sleep(every)
    return answer


class Daemon:
    def __init__(self, binary, folder, settings, sources):
        self.binary, self.folder, self.sources = binary, folder, sources
        self.http, self.admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.settings = {
            "data.dir": folder / "data",
            "http.listen": self.http,
            "admin.listen": self.admin,
            "spool.max_age": "500ms",
            # A log that holds something is what a quota of one byte refuses for.
            "queue.embedded.retention": "1h",
            "disk.max_used_percent": 99.5,
            "disk.resume_percent": 99,
            **settings,
        }
        self.config = folder / "config.toml"
        self.write_config(ROOMY)
        self.process = None

    def write_config(self, quota):
        # In one step: the daemon notices a changed file by itself.
        new = self.config.with_suffix(".new")
        new.write_text(f"{self.sources}\n[queue.embedded]\nquota = {quota}\n")
        new.rename(self.config)

    def options(self):
        return ["--config", str(self.config), *(word for key, value in self.settings.items() for word in ("--set", f"{key}={value}"))]

    def start(self):
        with open(self.folder / "log", "ab") as log:
            command = [*ENDS_WITH_US, self.binary, "run", *self.options()]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ready(self):
        def ask():
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log()}")
            try:
                with urllib.request.urlopen(f"http://{self.admin}/health/ready", timeout=PATIENCE) as answer:
                    return answer.status == 200
            except (urllib.error.URLError, OSError):
                return False

        wait_for("the daemon is ready", ask)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(PATIENCE) != 0:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log()}")

    def log(self):
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def fill(self, full):
        """From now on the log is full, or has room: what is to be stored is answered 503, or taken."""
        self.write_config(FULL if full else ROOMY)
        request = urllib.request.Request(f"http://{self.admin}/reload", b"", method="POST")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answer.read()

    def metrics(self, name, **labels):
        """The sum of a metric over all that have these labels."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=PATIENCE) as answer:
            lines = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)", answer.read().decode(), re.MULTILINE)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for found, value in lines if all(pair in found for pair in wanted))

    def command(self, *words):
        done = subprocess.run([self.binary, *words, *self.options()], stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout

    def archived(self):
        """The archive's lines, as text in which whatever was sent can be looked for."""
        return [line.decode() + decoded(json.loads(line)) for line in self.command("archive", "cat").splitlines()]

    def letters(self):
        """The dead letters' values, as text."""
        listed = json.loads(self.command("dlq", "show", "--json", "--limit", "100000"))
        return [(letter.get("value") or "") + decoded(letter) for letter in listed]


def decoded(record):
    """What stands as base64."""
    texts = [record.get("raw"), record.get("value_base64")]
    return "".join(base64.b64decode(text).decode(errors="replace") for text in texts if text)
