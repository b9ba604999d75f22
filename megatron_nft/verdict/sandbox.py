"""Runs a Python file without network and within limits: `python sandbox.py SECONDS MEGABYTES FILE`.

A script of its own, started by code_grader.py: it limits itself and becomes the interpreter that runs the file. Its
process may open no socket, signal no other process and trace none (seccomp, which no process can take back), take no
more CPU time, memory, files and output than allowed, and dies with its parent. It may read what the user may read:
where that is too much, run the grader in a container. Linux on x86_64 and aarch64.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: load a word, jump if equal, return
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 13, 0x80000000  # 13: EACCES
ARCHITECTURES = {
    # AUDIT_ARCH, and the numbers of socket, socketpair, kill, tkill, tgkill, ptrace, process_vm_writev, rt_sigqueueinfo
    "x86_64": (0xC000003E, (41, 53, 62, 200, 234, 101, 311, 129)),
    "aarch64": (0xC00000B7, (198, 199, 129, 130, 131, 117, 271, 138)),
}
EVERYWHERE = (425, 424, 434, 438)  # io_uring_setup, pidfd_send_signal, pidfd_open, pidfd_getfd
X32 = 0x40000000  # x86_64's second set of numbers
MAX_FILE_BYTES, MAX_OPEN_FILES, MAX_PROCESSES = 16 << 20, 64, 64


def refuse_calls() -> None:
    """From here on the kernel refuses them, in this process and all that it starts."""
    architecture, numbers = ARCHITECTURES[platform.machine()]
    refused = (*numbers, *EVERYWHERE)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(0x35, 0, 1, X32), (RETURN, 0, 0, KILL)]  # 0x35: jump if greater or equal
    for left, number in zip(range(len(refused), 0, -1), refused, strict=True):
        program.append((EQUAL, left, 0, number))
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def main() -> None:
    seconds, megabytes, file = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    cpu = max(1, round(seconds + 0.5))
    for what, limit in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, megabytes << 20), (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (limit, limit))
    refuse_calls()
    os.execve(sys.executable, [sys.executable, "-I", "-S", file], {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
