"""A system call filter for Linux, installed with ``ctypes``: no network, no programs, no writing."""

from __future__ import annotations

import ctypes
import os
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
    own: tuple[int, int]  # tgkill, prlimit64: of this process alone, its number or 0
    powers: tuple[int, ...]  # network, programs, other processes, kernel
    writing: tuple[int, ...]  # names, links, modes, times, lengths


_TABLES = {
    "x86_64": _Table(
        audit=0xC000003E,
        seccomp=317,
        clone=56,
        opening=((2, 1), (257, 2)),
        unknown=(435, 437),
        own=(234, 302),
        powers=(
            # socket, fork, vfork, execve, kill, ptrace, rt_sigqueueinfo, mount, umount2, pivot_root
            *(41, 57, 58, 59, 62, 101, 129, 165, 166, 155),
            # settimeofday, swapon, swapoff, reboot, init_module, delete_module, tkill, clock_settime
            *(164, 167, 168, 169, 175, 176, 200, 227),
            # kexec_load, add_key, request_key, keyctl, unshare, rt_tgsigqueueinfo, perf_event_open
            *(246, 248, 249, 250, 272, 297, 298),
            # open_by_handle_at, setns, process_vm_readv, process_vm_writev, finit_module, kexec_file_load
            *(304, 308, 310, 311, 313, 320),
            # bpf, execveat, userfaultfd, pidfd_send_signal, io_uring_setup, pidfd_getfd
            *(321, 322, 323, 424, 425, 438),
        ),
        writing=(
            # truncate, ftruncate, rename, mkdir, rmdir, creat, link, unlink, symlink, chmod, fchmod, chown
            *(76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92),
            # fchown, lchown, utime, mknod, setxattr and kin, removexattr and kin, utimes, mkdirat, mknodat
            *(93, 94, 132, 133, 188, 189, 190, 197, 198, 199, 235, 258, 259),
            # fchownat, futimesat, unlinkat, renameat, linkat, symlinkat, fchmodat, utimensat, renameat2
            *(260, 261, 263, 264, 265, 266, 268, 280, 316),
            # fchmodat2, setxattrat, removexattrat
            *(452, 463, 466),
        ),
    ),
    "aarch64": _Table(
        audit=0xC00000B7,
        seccomp=277,
        clone=220,
        opening=((56, 2),),
        unknown=(435, 437),
        own=(131, 261),
        powers=(  # the same where the architecture has them, in the same order
            *(198, 221, 129, 117, 138, 40, 39, 41),
            *(170, 224, 225, 142, 105, 106, 130, 112),
            *(104, 217, 218, 219, 97, 240, 241),
            *(265, 268, 270, 271, 273, 294),
            *(280, 281, 282, 424, 425, 438),
        ),
        writing=(
            *(45, 46, 52, 55, 5, 6, 7, 14, 15, 16),
            *(34, 33, 54, 35, 38, 37, 36, 53, 88, 276),
            *(452, 463, 466),
        ),
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
    code = _program(table, os.getpid())
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


def _program(table: _Table, pid: int) -> bytes:
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
    for number in table.own:
        steps += [(_JEQ, 0, 5, number), (_LD, 0, 0, _ARGUMENT), (_JEQ, 1, 0, pid)]
        steps += [(_JEQ, 0, 1, 0), (_RET, 0, 0, allow), (_RET, 0, 0, refuse)]
    for number, argument in table.opening:
        steps += [(_JEQ, 0, 4, number), (_LD, 0, 0, _ARGUMENT + 8 * argument)]
        steps += [(_JSET, 0, 1, _WRITING), (_RET, 0, 0, refuse), (_RET, 0, 0, allow)]
    steps.append((_RET, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *step) for step in steps)
