"""A system call filter for Linux, installed with ``ctypes``: no network, no programs, no writing."""

from __future__ import annotations

import ctypes
import platform
import struct
from dataclasses import dataclass

# linux/audit.h, linux/seccomp.h, linux/prctl.h, linux/sched.h
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NO_NEW_PRIVS, _SET_MODE_FILTER, _ALL_THREADS = 38, 1, 1
_CLONE_THREAD = 0x10000
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND
_X32 = 0x40000000
# classic BPF: load word, jump if equal, if at least, if any bit set, return
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16


@dataclass(frozen=True)
class _Table:
    """System call numbers of one architecture."""

    audit: int
    seccomp: int
    clone: int
    opening: tuple[tuple[int, int], ...]  # number, and which argument holds the flags
    unknown: tuple[int, ...]  # flags lie in memory, out of reach: clone3, openat2
    powers: tuple[int, ...]  # network, programs, other processes, kernel
    writing: tuple[int, ...]  # names, links, modes, lengths


_TABLES = {
    "x86_64": _Table(
        audit=0xC000003E,
        seccomp=317,
        clone=56,
        opening=((2, 1), (257, 2)),
        unknown=(435, 437),
        # socket, fork, vfork, execve, kill, ptrace, mount, add_key, request_key, keyctl, unshare,
        # perf_event_open, open_by_handle_at, setns, process_vm_readv, process_vm_writev, bpf, execveat,
        # userfaultfd, io_uring_setup
        powers=(
            *(41, 57, 58, 59, 62, 101, 165, 248, 249, 250, 272, 298, 304, 308, 310, 311, 321, 322, 323),
            425,
        ),
        # truncate, ftruncate, rename, mkdir, rmdir, creat, link, unlink, symlink, chmod, fchmod, chown,
        # fchown, lchown, mknod, setxattr and kin, mkdirat, mknodat, fchownat, unlinkat, renameat, linkat,
        # symlinkat, fchmodat, renameat2, fchmodat2
        writing=(
            *(76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 133, 188, 189, 190, 197, 198, 199),
            *(258, 259, 260, 263, 264, 265, 266, 268, 316, 452),
        ),
    ),
    "aarch64": _Table(
        audit=0xC00000B7,
        seccomp=277,
        clone=220,
        opening=((56, 2),),
        unknown=(435, 437),
        powers=(198, 221, 129, 117, 40, 217, 218, 219, 97, 241, 265, 268, 270, 271, 280, 281, 282, 425),
        writing=(45, 46, 38, 34, 35, 36, 37, 33, 52, 53, 54, 55, 5, 6, 7, 14, 15, 16, 276, 452),
    ),
}


def install() -> str | None:
    """Takes network, programs and writing from this process, every thread of it, for good.

    Refused calls fail with EPERM. Open descriptors keep working, threads can be started.

    Returns:
        None when the filter holds, else why it does not.
    """
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in _TABLES or struct.calcsize("P") != 8:
        return f"no system call filter for {platform.system()} on {machine}"
    table = _TABLES[machine]
    code = _program(table)
    program = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program)), 16
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"the kernel refused PR_SET_NO_NEW_PRIVS (errno {ctypes.get_errno()})"
    if libc.syscall(table.seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(header)) != 0:
        return f"the kernel refused a system call filter (errno {ctypes.get_errno()})"
    return None


def _program(table: _Table) -> bytes:
    """The filter as an array of ``struct sock_filter``; every branch ends in a return."""
    refuse, allow = _ERRNO | _EPERM, _ALLOW
    steps = [(_LD, 0, 0, _ARCHITECTURE), (_JEQ, 1, 0, table.audit), (_RET, 0, 0, _KILL)]
    steps += [(_LD, 0, 0, _NUMBER), (_JGE, 0, 1, _X32), (_RET, 0, 0, refuse)]
    for number in (*table.powers, *table.writing):
        steps += [(_JEQ, 0, 1, number), (_RET, 0, 0, refuse)]
    for number in table.unknown:
        steps += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | _ENOSYS)]
    steps += [(_JEQ, 0, 4, table.clone), (_LD, 0, 0, _ARGUMENT)]
    steps += [(_JSET, 0, 1, _CLONE_THREAD), (_RET, 0, 0, allow), (_RET, 0, 0, refuse)]
    for number, argument in table.opening:
        steps += [(_JEQ, 0, 4, number), (_LD, 0, 0, _ARGUMENT + 8 * argument)]
        steps += [(_JSET, 0, 1, _WRITING), (_RET, 0, 0, refuse), (_RET, 0, 0, allow)]
    steps.append((_RET, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *step) for step in steps)
