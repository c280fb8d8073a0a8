"""A virtual machine for the checks: Debian 13 with its own kernel, built from Debian's packages, run by QEMU."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from host import ROOT
from prober import Question

NAME = "slipway-machine"
USER = "deployer"
LOG = ROOT / ".check/machine.log"
CA = ROOT / f"ca/{NAME}.pem"
MIRROR = "http://deb.debian.org"
SUITE = "trixie"
PACKAGES = (
    "linux-image-cloud-amd64,initramfs-tools,udev,systemd-sysv,systemd-resolved,libpam-systemd,dbus,iproute2,openssh-server,"
    "sudo,python3,python3-apt,ca-certificates,curl,procps,selinux-policy-default"
)
# What Debian's SELinux policy lacks for this server. nginx's domain, httpd_t, stays enforced.
PERMISSIVE = ["firewalld_t", "systemd_networkd_t"]
ALLOWED = ["(allow dockerd_t firewalld_t (dbus (send_msg)))"]
# The programs that build and run the machine, and their Debian packages.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "setpriv": "util-linux",
}
KVM_SECONDS = 20
# Generous, because an emulated machine on a busy host is slow.
BUILD_SECONDS = 1800
BOOT_SECONDS = 900
PLAY_SECONDS = 3600


def run(command: Sequence[str | Path], seconds: float, given: str = "", **environment: str) -> str:
    """Run a command, log its output and return it. No process of it survives."""
    name = " ".join(map(str, command))[-200:]
    with LOG.open("a+", errors="replace") as log:
        log.write(f"\n{time.strftime('%H:%M:%S')} {name}\n")
        log.flush()
        start = log.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            process.communicate(given, seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done within {seconds:.0f} s: {name}; {LOG} has what it said") from None
        finally:
            end(process)
        log.seek(start)
        said = log.read()
    assert process.returncode == 0, f"exit code {process.returncode}: {name}\n{said[-5000:]}"
    return said.strip()


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and its group, by SIGINT first."""
    for number in signal.SIGINT, signal.SIGKILL:
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def refuse(why: str) -> NoReturn:
    pytest.exit(why, returncode=1)


def require_tools() -> None:
    """Install missing tools as root on Debian; otherwise exit with the remedy."""
    if os.geteuid() != 0:
        refuse("Only root can make a machine's disk. Remedy: run make machine as root.")
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        if not Path("/etc/debian_version").exists() or not shutil.which("apt-get"):
            remedy = f"install what your system has of Debian's packages {' '.join(missing)}"
            refuse(f"Missing here: {' '.join(missing)}, and this is not Debian. Remedy: {remedy}.")
        print(f"installing {' '.join(missing)} from Debian, once", flush=True)
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], BUILD_SECONDS)
        run(["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing], BUILD_SECONDS, **quiet)
    engine = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    if engine.returncode != 0:
        said = engine.stderr.strip()
        refuse(f"No Docker Engine answers here, and building the image needs one ({said}). Remedy: make up.")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Machine:
    """The machine; all its files are in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accel = ""
        self.seconds_to_build = self.seconds_to_boot = 0.0
        self._qemu: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_urlsafe(12)
        self._ssh_port, self._https_port = free_port(), free_port()
        self._ssh_options = [
            *("-F", "none", "-i", str(folder / "key"), "-o", f"UserKnownHostsFile={folder / 'known_hosts'}"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
            *("-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"),
            # One shared connection, for Ansible as well: a login to an emulated machine takes ten seconds.
            *("-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", f"ControlPath={folder / 'ssh-%C'}"),
            *("-o", "ServerAliveInterval=10"),
        ]

    def build(self) -> None:
        """Build the disk, the keys and the inventory, and choose the accelerator."""
        started = time.monotonic()
        root = self.folder / "root"
        sources = [
            f"deb {MIRROR}/debian {SUITE} main",
            f"deb {MIRROR}/debian {SUITE}-updates main",
            f"deb {MIRROR}/debian-security {SUITE}-security main",
        ]
        options = ["--quiet", "--mode=root", "--variant=minbase", f"--include={PACKAGES}"]
        options += ["--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
        run(["mmdebstrap", *options, SUITE, root, *sources], BUILD_SECONDS)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", self.folder / "key"], 60)
        run(["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "--groups", "sudo", USER], 60)
        run(["chroot", root, "chpasswd"], 60, f"{USER}:{self._password}\n")
        run(["chroot", root, "install", "-d", "-m", "700", "-o", USER, "-g", USER, f"/home/{USER}/.ssh"], 60)
        run(["chroot", root, "systemctl", "--quiet", "enable", "systemd-networkd", "systemd-resolved", "ssh"], 60)
        for file, text in {
            f"home/{USER}/.ssh/authorized_keys": (self.folder / "key.pub").read_text(),
            "etc/hostname": f"{NAME}\n",
            "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {NAME}\n",
            "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
            "etc/systemd/network/lan.network": "[Match]\nDriver=virtio_net\n\n[Network]\nDHCP=ipv4\n",
        }.items():
            (root / file).write_text(text)
        # SELinux stays off until the kernel's command line turns it on. Its policy is built here, because an emulated
        # machine takes ten minutes for that.
        (root / "root/machine.cil").write_text(
            "\n".join([*(f"(typepermissive {domain})" for domain in PERMISSIVE), *ALLOWED])
        )
        run(["chroot", root, "semodule", "--noreload", "--install", "/root/machine.cil"], BUILD_SECONDS)
        host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self._ssh_port} {host_key}")
        for kind in "vmlinuz", "initrd.img":
            (found,) = (root / "boot").glob(f"{kind}-*")
            shutil.copy(found, self.folder / kind)
        run(["mke2fs", "-q", "-t", "ext4", "-d", root, self.folder / "disk", "10G"], BUILD_SECONDS)
        shutil.rmtree(root)
        self._write_inventory()
        self.accel = self._find_accel()
        self.seconds_to_build = time.monotonic() - started

    def _write_inventory(self) -> None:
        settings = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self._ssh_port,
            "ansible_user": USER,
            "ansible_become_password": self._password,
            "ansible_ssh_common_args": " ".join(self._ssh_options),
        }
        inventory = self.folder / "hosts.yml"
        inventory.touch(mode=0o600)
        inventory.write_text(json.dumps({"all": {"children": {"model_servers": {"hosts": {NAME: settings}}}}}))

    def _find_accel(self) -> str:
        """Return kvm if a kernel boots with it; /dev/kvm may exist and QEMU still hang or abort."""
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "tcg,thread=multi"
        # Without a disk the kernel panics at the end of its boot, and QEMU exits normally.
        command = self._command("kvm", "console=ttyS0 panic=-1", "-no-reboot", "-serial", "stdio")
        try:
            said = run(command, KVM_SECONDS)
        except (TimeoutError, AssertionError):
            return "tcg,thread=multi"
        return "kvm" if "Kernel panic" in said else "tcg,thread=multi"

    def _command(self, accel: str, append: str, *more: str | Path) -> list[str | Path]:
        return [
            # Even SIGKILL to this process ends QEMU.
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-name", NAME, "-accel", accel),
            *("-cpu", "host" if accel == "kvm" else "max", "-smp", "2", "-m", "4096"),
            *("-nodefaults", "-display", "none"),
            *("-kernel", self.folder / "vmlinuz", "-append", append, *more),
        ]

    def start(self, *kernel_arguments: str) -> float:
        """Boot it, wait until all its units run, and return the seconds that took."""
        started = time.monotonic()
        forwards = f"hostfwd=tcp:127.0.0.1:{self._ssh_port}-:22,hostfwd=tcp:127.0.0.1:{self._https_port}-:443"
        command = self._command(
            self.accel,
            " ".join(["root=/dev/vda", "rw", "console=ttyS0", *kernel_arguments]),
            *("-initrd", self.folder / "initrd.img", "-serial", f"file:{self.folder / 'console'}"),
            *("-drive", f"file={self.folder / 'disk'},if=virtio,format=raw,cache=unsafe"),
            *("-nic", f"user,model=virtio-net-pci,{forwards}", "-device", "virtio-rng-pci"),
        )
        with LOG.open("ab") as log:
            self._qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_up()
        return time.monotonic() - started

    def wait_until_up(self) -> None:
        """Wait until ssh gets in and systemd reports every unit running."""

        def entered() -> bool:
            assert self._qemu is not None and self._qemu.poll() is None, f"qemu has ended; {LOG} has why"
            try:
                return self.as_user("echo in", seconds=30) == "in"
            except (AssertionError, TimeoutError):
                return False

        self.wait_until(entered, BOOT_SECONDS, "ssh enters")
        look = "systemctl is-system-running --wait || systemctl --failed --no-legend --plain"
        state = self.on(look, seconds=BOOT_SECONDS)
        assert state == "running", f"the machine is {state}; {LOG} has its console"

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s; its console's end:\n{self.console()[-3000:]}")
            time.sleep(0.2)

    def console(self) -> str:
        file = self.folder / "console"
        return file.read_text(errors="replace") if file.exists() else ""

    def switch_off(self) -> None:
        """Shut it down cleanly; its disk is used again."""
        qemu = self._qemu
        assert qemu is not None
        self.on("systemctl --no-block poweroff")
        self.wait_until(lambda: qemu.poll() is not None, BOOT_SECONDS, "the machine is off")

    def as_user(self, command: str, *options: str, given: str = "", seconds: float = 300) -> str:
        """Run a shell command on the machine as the user who logs in, and return what it said."""
        enter = ["ssh", *options, *self._ssh_options, "-p", str(self._ssh_port), f"{USER}@127.0.0.1"]
        return run([*enter, command], seconds, given)

    def on(self, command: str, seconds: float = 300) -> str:
        """Run a shell command on the machine as root, by sudo and its password, and return what it said."""
        # The command follows the password on standard input, so nothing needs quoting.
        return self.as_user(
            "sudo -k -S -p '' sh -eu /dev/stdin", given=f"{self._password}\n{command}\n", seconds=seconds
        )

    def run_playbook(self, playbook: str, *arguments: str, **variables: Any) -> tuple[str, float]:
        """Run a playbook on it, and return what it said and the seconds that took."""
        started = time.monotonic()
        command: list[str | Path] = [Path(sys.executable).parent / "ansible-playbook", playbook, *arguments]
        command += ["--inventory", self.folder / "hosts.yml", "--extra-vars", json.dumps(variables)]
        said = run(command, PLAY_SECONDS)
        return said, time.monotonic() - started

    def ask(self, question: Question, seconds: float = 30) -> tuple[int, bool]:
        """Ask over HTTPS, verified; return the status (0 for no answer) and whether the answer is right."""
        tls = ssl.create_default_context(cafile=str(CA))
        connection = http.client.HTTPSConnection("localhost", self._https_port, timeout=seconds, context=tls)
        try:
            headers = {"Content-Type": question.content_type}
            connection.request(question.method, question.path, question.body, headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return 0, False
        finally:
            connection.close()
        return answer.status, answer.status == 200 and question.version(body, ()) is not None

    def destroy(self) -> None:
        """End the process and delete the disk and all other files."""
        if self._qemu is not None:
            end(self._qemu)
            assert self._qemu.poll() is not None, f"qemu, process {self._qemu.pid}, does not end"
            console, self._qemu = self.console(), None
            with LOG.open("a") as log:
                log.write(f"\nthe console, until the end:\n{console}\n")
        if self.folder.exists():
            shutil.rmtree(self.folder)
        CA.unlink(missing_ok=True)


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """A running machine, destroyed afterwards whatever happens."""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    require_tools()
    # In the parent folder of Slipway's runs: if this process is killed, a later run removes what it left.
    parent = Path(f"/var/tmp/slipway-{os.getuid()}")
    parent.mkdir(mode=0o700, exist_ok=True)
    made = Machine(Path(tempfile.mkdtemp(prefix="machine-", dir=parent)))
    ended = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        made.build()
        made.seconds_to_boot = made.start()
        yield made
    finally:
        # A second Ctrl-C does not end the removal.
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            made.destroy()
        finally:
            signal.signal(signal.SIGINT, interrupted)
            signal.signal(signal.SIGTERM, ended)
