"""What commands are kept from asking the kernel for, besides what the engine's own filter forbids."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress

from sandbox.toolbox.kernel import call

# From linux/audit.h and the tables of system calls: seccomp; then for a processor and for its 32-bit
# predecessor, whose programs it also runs: its number, fallocate, io_uring_setup, file_setattr, ioctl.
_CALLS = {
    "x86_64": (317, ((0xC000003E, 285, 425, 469, 16), (0x40000003, 324, 425, 469, 54))),
    "aarch64": (277, ((0xC00000B7, 47, 425, 469, 29), (0x40000028, 352, 425, 469, 54))),
}
_NUMBER_BITS = 0x3FFFFFFF  # another bit is for the x32 variant of a call

# Requests to ioctl, without the part of the number that tells the size of the argument. From linux/falloc.h
# the older way to reserve space; from linux/fs.h FS_IOC_FSSETXATTR and FS_IOC_SETFLAGS, which change a file's
# project and whether a directory hands its own on.
_REQUESTS = (0x5828, 0x582A, 0x5839, 0x5820, 0x6602)

# From linux/seccomp.h. Without the flag, some kernels slow down all that the processes do.
_SET_MODE_FILTER, _FLAG_SPEC_ALLOW = 1, 4
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER, _PROCESSOR, _SECOND_ARGUMENT = 0, 4, 24  # in struct seccomp_data, on a little-endian processor

# From linux/bpf_common.h
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_evading_limits() -> None:
    """Have this process, and all that come from it, write what they want to take of a disk, and own up to it.

    If space could be reserved, a disk would be full within milliseconds, and nobody who looks after it can be
    so quick. Programs have to be ready for file systems that cannot reserve space, and the C library writes
    zeros in its place. A file that changes its project would be counted by another quota. io_uring is
    forbidden since it gets around this, as engines of today do by themselves. On processors that are not
    known here, and kernels without filters, all stays allowed.
    """
    known = _CALLS.get(os.uname().machine)
    if known is not None:
        seccomp, processors = known
        code = b"".join(_block(*processor) for processor in processors) + _step(_RETURN, _ALLOW)
        program = _Program(len(code) // _INSTRUCTION.size, code)
        with suppress(OSError):
            call(seccomp, _SET_MODE_FILTER, _FLAG_SPEC_ALLOW, ctypes.byref(program))


def _block(processor: int, fallocate: int, io_uring_setup: int, file_setattr: int, ioctl: int) -> bytes:
    """Return the part for one processor. A jump's distance is counted from the step after it."""
    allow = 10 + len(_REQUESTS)
    unsupported, unknown = allow + 1, allow + 2
    return b"".join(
        (
            _step(_LOAD, _PROCESSOR),
            _step(_IF_EQUAL, processor, 0, unknown - 1),
            _step(_LOAD, _NUMBER),
            _step(_AND, _NUMBER_BITS),
            _step(_IF_EQUAL, fallocate, unsupported - 5, 0),
            _step(_IF_EQUAL, io_uring_setup, unknown - 6, 0),
            _step(_IF_EQUAL, file_setattr, unknown - 7, 0),
            _step(_IF_EQUAL, ioctl, 0, allow - 8),
            _step(_LOAD, _SECOND_ARGUMENT),
            _step(_AND, 0xFFFF),
            *(
                _step(_IF_EQUAL, request, unsupported - 11 - place, 0)
                for place, request in enumerate(_REQUESTS)
            ),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _FAIL | errno.EOPNOTSUPP),
            _step(_RETURN, _FAIL | errno.ENOSYS),
        )
    )


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)
