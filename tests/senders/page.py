"""A sender that is a page in a browser, without a driver: the page comes from a server of the run, which is another origin than the
daemon's; it asks that server for chunks, sends them, and tells it what came of them."""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from daemon import PATIENCE, wait_for
from running import Process

# It is root's in CI, in a container, and has nobody to talk to; the port keeps it open.
OPTIONS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-proxy-server --disable-sync
    --disable-background-networking --disable-component-update --disable-extensions --remote-debugging-port=0""".split()
PAGE = '<!doctype html><meta charset="utf-8"><script type="module" src="/page.mjs"></script>'
KINDS = {"html": "text/html", "mjs": "text/javascript", "json": "application/json"}


class Page(Process):
    def __init__(self, chromium, folder, origin, files):
        self.chunks, self.told, self.states = queue.SimpleQueue(), [], {}
        self.server = ThreadingHTTPServer(("127.0.0.1", int(origin.rsplit(":", 1)[1])), handler(self, {"/": PAGE, **files}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        super().__init__([chromium, f"--user-data-dir={folder / 'profile'}", *OPTIONS, f"{origin}/"], folder)
        self.wait("start")

    def answer(self, path, body):
        """To what the page asks for, or tells."""
        match path:
            case "/chunk":
                return self.chunks.get()
            case "/refused":
                self.told += body
            case _:
                self.states[path[1:]] = body
        return None

    def wait(self, state):
        """Until the page has said so."""

        def ask():
            if "failed" in self.states or self.process.poll() is not None:
                raise AssertionError(f"the page failed: {self.states.get('failed')}\n{self.said()}")
            return state in self.states

        wait_for(f"the page's {state}", ask)

    def give(self, chunk):
        self.chunks.put({"chunk": chunk})

    def settle(self):
        self.states.pop("settled", None)
        self.chunks.put({"settle": True})
        self.wait("settled")

    def finish(self):
        self.chunks.put({"end": True})
        self.wait("end")

    def kill(self):
        super().kill()
        # What still asks for a chunk is told that there is none.
        self.chunks.put({"end": True})
        self.server.shutdown()
        self.server.server_close()

    def refused(self):
        return self.told


def handler(page, files):
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def log_message(self, *_):
            pass

        def send(self, kind, text):
            try:
                self.send_response(200)
                self.send_header("Content-Type", f"{KINDS[kind]}; charset=utf-8")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(text.encode())
            except ConnectionError:
                # A page that was ended while it asked.
                pass

        def do_GET(self):
            if (text := files.get(self.path)) is None:
                self.send_error(404)
            else:
                self.send("mjs" if self.path.endswith(".mjs") else "html", text)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send("json", json.dumps(page.answer(self.path, json.loads(body))))

    return Handler
