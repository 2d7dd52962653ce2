# What libseccomp makes of an OCI policy, as runc gives it one: the filter on standard output, the numbers
# that this version knows, by architecture, on standard error. The policy comes on standard input.
import json
import sys

import seccomp

policy = json.load(sys.stdin)
ops = {"SCMP_CMP_EQ": seccomp.EQ, "SCMP_CMP_NE": seccomp.NE, "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ, "SCMP_CMP_GT": seccomp.GT,
       "SCMP_CMP_GE": seccomp.GE, "SCMP_CMP_LT": seccomp.LT, "SCMP_CMP_LE": seccomp.LE}


def action(name, errno):
    if name == "SCMP_ACT_ERRNO":
        return seccomp.ERRNO(1 if errno is None else errno)
    return {"SCMP_ACT_ALLOW": seccomp.ALLOW, "SCMP_ACT_LOG": seccomp.LOG, "SCMP_ACT_KILL_PROCESS": seccomp.KILL_PROCESS}[name]


def compare(a):
    v, two = a.get("value", 0), a.get("valueTwo", 0)
    if a["op"] == "SCMP_CMP_MASKED_EQ":
        return seccomp.Arg(a["index"], seccomp.MASKED_EQ, v, two)
    return seccomp.Arg(a["index"], ops[a["op"]], v)


f = seccomp.SyscallFilter(action(policy["defaultAction"], policy.get("defaultErrnoRet")))
arches = {"x86_64": "x86_64", "x86": "x86", "x32": "x32"}
for a in ("x86", "x32"):
    f.add_arch(seccomp.Arch(a))
for s in policy["syscalls"]:
    act = action(s["action"], s.get("errnoRet"))
    if s["action"] == policy["defaultAction"] and s.get("errnoRet") == policy.get("defaultErrnoRet"):
        continue
    args = s.get("args") or []
    alternatives = len({a["index"] for a in args}) < len(args)
    for name in s["names"]:
        try:
            if alternatives:
                for a in args:
                    f.add_rule(act, name, compare(a))
            else:
                f.add_rule(act, name, *[compare(a) for a in args])
        except (OSError, RuntimeError, ValueError):
            pass  # a name that this version does not know
known = {}
for a in arches:
    known[a] = {}
    for n in range(620):
        try:
            name = seccomp.resolve_syscall(seccomp.Arch(a), n | (0x40000000 if a == "x32" else 0))
        except (ValueError, RuntimeError):
            continue
        if name:
            known[a][str(n)] = name.decode() if isinstance(name, bytes) else name
json.dump(known, sys.stderr)
sys.stdout.flush()
f.export_bpf(sys.stdout.buffer)
