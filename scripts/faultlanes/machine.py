"""What this machine offers, and the things that are made of it: filesystems that lose their power."""

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

# _IOR('X', 125, u32) of ext4 and XFS: the filesystem stops at once. 2: its journal is not flushed either,
# so that everything is lost that was not synced, as with a power cut.
SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = struct.pack("I", 2)

MKFS = {"ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], "xfs": ["mkfs.xfs", "-q", "-f"]}
PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "losetup": "mount",
    "mount": "mount",
    "umount": "mount",
    "strace": "strace",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "fusermount3": "fuse3",
    "faketime": "faketime",
}


class Missing(Exception):
    """A lane cannot run here; the text names what is missing and how to get it."""


def run(*command, **options):
    """Runs a command to its end; an error has its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def need_root():
    if os.geteuid() != 0:
        raise Missing("root: run scripts/faults as root")


def need_program(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Missing(f"{name}: apt-get install {PACKAGES.get(name, name)}")
    return path


def need_filesystem(kind):
    need_root()
    for program in (MKFS[kind][0], "losetup", "mount", "umount"):
        need_program(program)


class Filesystem:
    """A real filesystem on a loop device over a file in memory."""

    def __init__(self, kind, size="1G"):
        need_filesystem(kind)
        self.kind = kind
        self.mountpoint = Path(tempfile.mkdtemp(prefix="beamlog-faults-"))
        self.device = None
        self.mounted = False
        try:
            self.device = self.attach(size)
            run(*MKFS[kind], self.device)
            self.mount()
        except BaseException:
            self.remove()
            raise

    def attach(self, size):
        self.folder = Path(tempfile.mkdtemp(prefix="beamlog-faults-", dir="/dev/shm"))
        run("truncate", "-s", size, self.folder / "image")
        return run("losetup", "-f", "--show", self.folder / "image").strip()

    def detach(self):
        if self.device:
            run("losetup", "-d", self.device)
        shutil.rmtree(self.folder, ignore_errors=True)

    def mount(self):
        run("mount", "-t", self.kind, self.device, self.mountpoint)
        self.mounted = True

    def cut_power(self):
        """From here on nothing reaches the medium."""
        descriptor = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def unmount(self):
        # A killed process may take a moment to let go of its files.
        for _ in range(100):
            try:
                run("umount", self.mountpoint)
                self.mounted = False
                return
            except RuntimeError as error:
                if "busy" not in str(error):
                    raise
                time.sleep(0.05)
        raise RuntimeError(f"{self.mountpoint} stays busy")

    def restart(self):
        """What a reboot does: the page cache is gone, the journal is replayed."""
        self.unmount()
        self.mount()

    def remove(self):
        if self.mounted:
            with contextlib.suppress(RuntimeError):
                self.unmount()
        if not self.mounted:
            with contextlib.suppress(RuntimeError, OSError):
                self.detach()
            with contextlib.suppress(OSError):
                self.mountpoint.rmdir()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()


ZRAM = Path("/sys/class/zram-control")


class FailingFilesystem(Filesystem):
    """The same on a compressed disk in memory, whose writes fail with EIO when it may not grow. (A loop
    device over a full filesystem does not do: it reports a write that was cut short as done.)"""

    def __init__(self, kind="ext4", size="2G"):
        need_root()
        if not (ZRAM / "hot_add").exists():
            raise Missing(f"{ZRAM}: this kernel has no zram (modprobe zram)")
        super().__init__(kind, size)

    def attach(self, size):
        self.number = (ZRAM / "hot_add").read_text().strip()
        self.zram = Path(f"/sys/block/zram{self.number}")
        (self.zram / "disksize").write_text(size)
        node = Path(f"/dev/zram{self.number}")
        if not node.exists():
            major, minor = (self.zram / "dev").read_text().split(":")
            os.mknod(node, 0o600 | 0o060000, os.makedev(int(major), int(minor)))
        return str(node)

    def detach(self):
        (self.zram / "reset").write_text("1")
        (ZRAM / "hot_remove").write_text(self.number)
        Path(self.device or "/dev/null/none").unlink(missing_ok=True)

    def fail_writes(self, failing):
        (self.zram / "mem_limit").write_text("4096" if failing else "0")


def read_past_cache(path, chunk=1 << 20):
    """A file as the medium has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, chunk)  # page-aligned
        parts, offset = [], 0
        while count := os.preadv(descriptor, [buffer], offset):
            parts.append(buffer[:count])
            offset += count
            if count < chunk:
                break
        return b"".join(parts)
    finally:
        os.close(descriptor)


def try_power_cut(kind):
    """Does a power cut and sees what it must see: the synced survives, the unsynced does not."""
    with Filesystem(kind, "512M") as filesystem:
        with open(filesystem.mountpoint / "synced", "wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(filesystem.mountpoint, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        (filesystem.mountpoint / "unsynced").write_bytes(b"y" * 4096)
        filesystem.cut_power()
        filesystem.restart()
        synced = (filesystem.mountpoint / "synced").read_bytes() == b"x" * 4096
        unsynced = filesystem.mountpoint / "unsynced"
        lost = not unsynced.exists() or unsynced.read_bytes() != b"y" * 4096
        if not (synced and lost):
            raise RuntimeError(f"synced kept: {synced}, unsynced lost: {lost}")
        return "synced bytes kept, unsynced file lost"


def try_strace():
    need_program("strace")
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1", "python3", "-c",
         "import os, tempfile\nf = tempfile.TemporaryFile()\nos.fsync(f.fileno())"],
        capture_output=True, text=True,
    )
    if "Input/output error" not in done.stderr:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "no output")
    return "fsync failed with EIO as asked"


def try_program(name):
    def attempt():
        return need_program(name)

    return attempt


def try_path(path):
    def attempt():
        if not Path(path).exists():
            raise Missing(f"{path}: not on this kernel")
        return path

    return attempt


PROBES = [
    ("root", lambda: need_root() or f"uid {os.geteuid()}"),
    ("power cut of ext4 on a loop device", lambda: try_power_cut("ext4")),
    ("power cut of XFS on a loop device", lambda: try_power_cut("xfs")),
    ("fault injection by strace", try_strace),
    ("FUSE", try_path("/dev/fuse")),
    ("device-mapper", try_path("/dev/mapper/control")),
    ("KVM", try_path("/dev/kvm")),
    ("shifted clocks by faketime", try_program("faketime")),
]


def probe(more=()):
    """Prints what of this works here; tried, not assumed."""
    for name, attempt in [*PROBES, *more]:
        try:
            print(f"  works    {name:<44} {attempt()}")
        except Missing as missing:
            print(f"  missing  {name:<44} {missing}")
        except (RuntimeError, OSError) as error:
            print(f"  fails    {name:<44} {error}")
