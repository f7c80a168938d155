"""The senders: how each is started, and what its entry in docs/clients.md promises."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import packages
from daemon import free_port
from packages import Unavailable, program
from page import Page
from running import Alertmanager, Collectd, Lines, Process, Program

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
GUIDE = CHECKOUT / "docs/clients.md"
# Larger events are wrong: some senders can make no other wrong ones.
SMALL = {"http.max_event": "8KiB"}
KEPT = {"event.on_invalid": "quarantine"}
PAGES = {"http.cors.origins": "ORIGIN"}


@dataclass
class Sender:
    name: str
    version: str
    start: Callable
    # The daemon's, in which ORIGIN is where a page comes from.
    settings: dict = field(default_factory=dict)
    # Files of packaging/sources that are a part of the daemon's configuration.
    sources: tuple = ()
    # What becomes of a wrong event: the sender is "told", or a dead "letter" keeps it.
    wrong: str = "letter"
    # What it is given while the daemon is "full", or "away", is lost: it keeps nothing.
    loses: tuple = ()
    # It asks for `handling=lenient`, and sends again what failed for a passing reason alone.
    lenient: bool = False
    # Events that may be sent and not answered when the daemon is killed: so many may stand twice.
    in_flight: int = 5
    chunk: int = 5
    every: float = 0.1
    # Work after its end, such as sending what it has laid aside.
    after: Callable | None = None


@dataclass
class Run:
    """A sender's surroundings."""

    name: str
    folder: Path
    root: Path
    # Where it sends to.
    address: str
    # Where a page comes from.
    origin: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")

    def block(self, name=None):
        """The lines of docs/clients.md, on this run's address."""
        text = "\n".join(blocks(name or self.name))
        return re.sub(r"\b8080\b", self.address.rsplit(":", 1)[1], text)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path


def blocks(name, kind="sender"):
    """The blocks of docs/clients.md whose comment names this sender."""
    found = re.findall(rf"<!-- {kind}: ([^>]*) -->\n```\w*\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    if not (mine := [block for names, block in found if name in names.split()]):
        raise AssertionError(f"{GUIDE} has no lines for {name}")
    return mine


# Programs


def curl(run):
    program("curl", "curl"), program("jq", "jq")
    script = run.write("main.sh", f"{run.block()}\n{(HERE / 'curl/main.sh').read_text()}")
    return Program([program("bash", "bash"), script], run.folder)


def python(run, name=None, requirements=()):
    name = name or run.name
    main = HERE / name / "main.py"
    main = main if main.exists() else HERE / "python/main.py"
    script = run.write("main.py", f"{run.block()}\n{main.read_text()}")
    environment = dict(os.environ)
    if requirements:
        environment["PYTHONPATH"] = str(packages.pip(run.root, name, list(requirements)))
    return Program([sys.executable, script], run.folder, env=environment)


def node(run):
    """A program in JavaScript: main.mjs, the lines of the guide as block.mjs, and the packages of package.json."""
    runtime = program("node", "nodejs")
    if (HERE / run.name / "package.json").exists():
        made = packages.npm(run.root, run.name, HERE / run.name)
        (run.folder / "node_modules").symlink_to(made / "node_modules")
    shutil.copy(HERE / run.name / "main.mjs", run.folder)
    shutil.copy(HERE / "chunks.mjs", run.folder)
    run.write("block.mjs", run.block())
    return Program([runtime, "main.mjs"], run.folder)


def browser(run):
    """A page: main.mjs, and the lines of the guide as block.mjs."""
    named = os.environ.get("INGESTD_CHROMIUM", "chromium")
    if not (found := shutil.which(named)):
        raise Unavailable(f"there is no Chromium by the name of {named} here: apt-get install chromium, or set INGESTD_CHROMIUM")
    files = {"/page.mjs": (HERE / "page.mjs").read_text(), "/main.mjs": (HERE / run.name / "main.mjs").read_text()}
    return Page(found, run.folder, run.origin, {**files, "/block.mjs": run.block()})


def java(run, block="Events.java", options=()):
    """A program in Java: Main.java, and the lines of the guide."""
    compiler, runtime = program("javac", "default-jdk-headless"), program("java", "default-jdk-headless")
    classes = packages.maven(run.root, run.name, HERE / run.name) if (HERE / run.name / "pom.xml").exists() else ""
    run.write(block, run.block())
    sources = [HERE / run.name / "Main.java", *run.folder.glob("*.java")]
    subprocess.run([compiler, "-cp", classes, "-d", run.folder, *sources], check=True)
    command = [runtime, "-XX:TieredStopAtLevel=1", "-Xmx128m", *options, "-cp", f"{run.folder}:{classes}", "Main"]
    return Program(command, run.folder)


def go(run):
    """A program in Go: main.go, and the lines of the guide."""
    built = packages.go(run.root, run.name, HERE / run.name, "\n".join(blocks(run.name)))
    return Program([built, f"http://{run.address}/v1/events"], run.folder)


def go_configured(file):
    """A program in Go that reads the lines of the guide, and what its folder has beside them, as its configuration."""

    def start(run):
        built = packages.go(run.root, run.name, HERE / run.name)
        around = HERE / run.name / file
        return Program([built, run.write(file, run.block() + (around.read_text() if around.exists() else ""))], run.folder)

    return start


def behind_nginx(run):
    """The program in Python, and nginx as the proxy that its requests pass."""
    root = packages.debian(run.root, "nginx", ["nginx"])
    port = free_port()
    location = re.sub(r"127\.0\.0\.1:8080", run.address, "\n".join(blocks("nginx", "proxy")))
    config = (HERE / "nginx/nginx.conf").read_text().replace("FOLDER", str(run.folder)).replace("PORT", str(port))
    (run.folder / "nginx").mkdir()
    command = [root / "usr/sbin/nginx", "-p", run.folder / "nginx", "-c", run.write("nginx.conf", config.replace("LOCATION", location))]
    proxy = Process(command, run.folder, "nginx", env=libraries(root))
    run.address = f"127.0.0.1:{port}"
    sender = python(run, "python")
    end, kill = sender.finish, sender.kill
    sender.finish = lambda: (end(), proxy.finish())
    sender.kill = lambda: (kill(), proxy.kill())
    return sender


# Loggers


def log4j(run):
    # Java's own client sends a POST again by itself when a connection that it kept breaks.
    return java(run, "log4j2.xml", ["-Dlog4j2.configurationFile=log4j2.xml", "-Dsun.net.http.retryPost=false"])


def send_kept(run):
    """What log4j has laid aside is sent by the lines for curl."""
    send = run.block("curl").replace("/v1/events", re.search(r'url="http://[^/]*([^"]*)"', run.block())[1])
    subprocess.run([program("bash", "bash"), "-c", f"{send}\nsend kept.ndjson"], cwd=run.folder, check=True)


# Shippers and agents


def libraries(root):
    """An environment in which programs find the libraries that were unpacked beside them."""
    folders = sorted({str(path.parent) for path in root.rglob("*.so*")})
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


def around(run, file, **words):
    """What stands around the lines of the guide in a shipper's configuration."""
    text = (HERE / Path(file).stem / file).read_text()
    for word, value in {"FOLDER": run.folder, "LINES": run.block(Path(file).stem), **words}.items():
        text = text.replace(word, str(value))
    return run.write(file, text)


def text_line(given):
    """A message, or one that is too large."""
    return f"order placed {given['number']}{' x' * 6_000 if given['wrong'] else ''}"


def syslog_line(given):
    return f"<13>{time.strftime('%b %e %H:%M:%S', time.gmtime())} host-1 shop: {text_line(given)}"


def syslog_ng(run):
    root = packages.debian(run.root, run.name, ["syslog-ng-core", "syslog-ng-mod-http"])
    port, modules = free_port(), next(path for path in root.glob("usr/lib/syslog-ng/*") if path.is_dir())
    config = around(run, "syslog-ng.conf", PORT=port, VERSION=modules.name)
    state = [f"--persist-file={run.folder}/persist", f"--pidfile={run.folder}/pid", f"--control={run.folder}/control"]
    command = [root / "usr/sbin/syslog-ng", "-F", "--no-caps", "-f", config, f"--module-path={modules}", *state]
    return Lines(command, run.folder, port, syslog_line, env=libraries(root))


def rsyslog(run, **more):
    root = packages.debian(run.root, "rsyslog", ["rsyslog", "libestr0", "libfastjson4"])
    modules = omhttp(run.root)
    port = free_port()
    config = around(run, "rsyslog.conf", PORT=port, **more)
    places = f"{root}/usr/lib/x86_64-linux-gnu/rsyslog:{modules}"
    command = [root / "usr/sbin/rsyslogd", "-n", "-f", config, "-i", run.folder / "pid", "-M", places]
    return Lines(command, run.folder, port, syslog_line, env=libraries(root))


def rsyslog_in_batches(run):
    """The same, with what the guide warns of."""
    return rsyslog(run, **{'type="omhttp"': 'type="omhttp" batch="on" batch.format="newline" httpcontenttype="application/x-ndjson"'})


def omhttp(root):
    """rsyslog's module omhttp, which no package has, built from Debian's source. The rest of rsyslog comes from its package."""
    needed = ["libestr-dev", "libestr0", "libfastjson-dev", "libfastjson4", "libcurl4-openssl-dev", "libcurl4", "zlib1g-dev", "uuid-dev"]
    headers = packages.debian(root, "omhttp-headers", needed)
    places = {"PKG_CONFIG_PATH": str(next(headers.glob("usr/lib/*/pkgconfig"))), "PKG_CONFIG_SYSROOT_DIR": str(headers)}
    without = ["libgcrypt", "liblogging-stdlog", "libsystemd", "generate-man-pages", "klog", "default-tests", "fmhttp"]

    def build(folder, source):
        options = {"cwd": source, "env": {**os.environ, **places}}
        configure = ["./configure", "--enable-omhttp", "--disable-dependency-tracking"]
        packages.client([*configure, *(f"--disable-{part}" for part in without)], **options)
        packages.client(["make", "-C", "contrib/omhttp"], **options)
        shutil.copy(source / "contrib/omhttp/.libs/omhttp.so", folder)
        shutil.rmtree(source)

    return packages.debian_source(root, "omhttp", "rsyslog", build)


def collectd(run):
    root = packages.debian(run.root, run.name, ["collectd-core", "libcurl3-gnutls", "libyajl2"])
    config = around(run, "collectd.conf", PLUGINS=root / "usr/lib/collectd", TYPES=root / "usr/share/collectd/types.db")
    return Collectd([root / "usr/sbin/collectd", "-f", "-C", config], run.folder, env=libraries(root))


def fluent_bit(run):
    if not (found := os.environ.get("INGESTD_FLUENT_BIT") or shutil.which("fluent-bit")):
        raise Unavailable("there is no fluent-bit on the PATH, nor in INGESTD_FLUENT_BIT: no registry has one")
    port = free_port()
    return Lines([found, "-c", around(run, "fluent-bit.conf", PORT=port)], run.folder, port, text_line)


def alertmanager(run):
    root = packages.debian(run.root, run.name, ["prometheus-alertmanager"])
    port = free_port()
    # It looks for its templates below /usr/share: in a name space of its own these are the unpacked ones.
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount --bind "$0" /usr/share && exec "$@"', root / "usr/share"]
    command = [*inside, root / "usr/bin/prometheus-alertmanager", f"--config.file={run.write('alertmanager.yml', run.block())}"]
    command += [f"--storage.path={run.folder}/state", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    return Alertmanager(command, run.folder, port)


SENDERS = [
    Sender("curl", "7.88", curl, wrong="told", lenient=True, in_flight=20, chunk=20, every=0.4),
    Sender("python", "3.11", python, wrong="told", lenient=True),
    Sender("javascript", "Node 20", node, wrong="told", lenient=True),
    Sender("browser", "Chromium 156", browser, PAGES, wrong="told", lenient=True),
    Sender("browser-beacon", "Chromium 156", browser, {**PAGES, **KEPT}, loses=("full", "away")),
    Sender("java", "17", java, wrong="told"),
    Sender("go", "1.26", go, wrong="told", lenient=True),
    Sender("requests", "2.34.2", lambda run: python(run, requirements=["requests==2.34.2"]), wrong="told", lenient=True),
    Sender("nginx", "1.22.1", behind_nginx, wrong="told"),
    Sender("segment", "3.1.0", node, {**SMALL, **KEPT}, ("segment",), in_flight=30),
    Sender("posthog", "5.70.0", node, {**SMALL, **KEPT}, ("posthog",), in_flight=100),
    Sender("rudder", "3.0.13", node, {**SMALL, **KEPT}, ("rudder",), in_flight=40),
    Sender("snowplow", "4.8.0", node, {**SMALL, **KEPT}, ("snowplow",), in_flight=100),
    Sender("amplitude", "1.5.73", node, {**SMALL, **KEPT}, ("amplitude",), in_flight=200),
    Sender("cloudevents-javascript", "10.0.0", node, wrong="told", in_flight=1),
    Sender(
        "cloudevents-python", "2.2.0", lambda run: python(run, requirements=["cloudevents==2.2.0", "requests==2.34.2"]),
        wrong="told", in_flight=1,
    ),
    Sender("cloudevents-java", "4.0.1", java, wrong="told", in_flight=1),
    Sender("cloudevents-go", "2.16.2", go, wrong="told", in_flight=1),
    Sender("winston", "3.19.0", node, KEPT, loses=("full", "away")),
    Sender("log4j", "2.26.1", log4j, {**SMALL, **KEPT}, ("ecs",), in_flight=1, after=send_kept),
    Sender("syslog-ng", "3.38.1", syslog_ng, {**SMALL, **KEPT}, in_flight=100),
    Sender("rsyslog", "8.2302.0", rsyslog, {**SMALL, **KEPT}, in_flight=1),
    Sender("rsyslog-batch", "8.2302.0", rsyslog_in_batches, {**SMALL, **KEPT}, loses=("full",)),
    Sender("collectd", "5.12.0", collectd, {"http.max_event": "280B", **KEPT}, loses=("full", "away")),
    Sender("fluent-bit", "5.1.1", fluent_bit, {**SMALL, **KEPT}, in_flight=100),
    Sender("opentelemetry", "0.165.0", go_configured("otlp.yaml"), {**SMALL, **KEPT}, in_flight=50),
    Sender("telegraf", "1.37.2", go_configured("telegraf.conf"), {**SMALL, **KEPT}, ("telegraf",), in_flight=1000),
    Sender("alertmanager", "0.25.0", alertmanager, {**SMALL, **KEPT}, ("alertmanager",), chunk=2, every=0.25, in_flight=20),
]  # fmt: skip
GROUPS = {
    # What this machine and its package clients have for the tests anyway.
    "light": ["curl", "python", "javascript", "browser", "browser-beacon", "java"],
    "all": [sender.name for sender in SENDERS],
}
