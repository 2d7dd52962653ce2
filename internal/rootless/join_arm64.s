#include "textflag.h"

// joiner: see join_amd64.s.
TEXT ·joiner(SB), NOSPLIT|NOFRAME, $0-0
	MOVD RSP, R19
	MOVD $0x400400, R20

	// setns(user, CLONE_NEWUSER)
	MOVD 0(R20), R0
	MOVD $0x10000000, R1
	MOVD $268, R8
	SVC
	CBNZ R0, fail

	// setns(mnt, CLONE_NEWNS)
	MOVD 8(R20), R0
	MOVD $0x20000, R1
	MOVD $268, R8
	SVC
	CBNZ R0, fail

	// close(user), close(mnt)
	MOVD 0(R20), R0
	MOVD $57, R8
	SVC
	MOVD 8(R20), R0
	MOVD $57, R8
	SVC

	// chdir(cwd)
	MOVD 24(R20), R0
	MOVD $49, R8
	SVC

	// fcntl(exe, F_SETFD, FD_CLOEXEC)
	MOVD 16(R20), R0
	MOVD $2, R1
	MOVD $1, R2
	MOVD $25, R8
	SVC

	// execve(path, argv, envp)
	ADD  $8, R19, R21
	MOVD 0(R19), R22
	ADD  R22<<3, R19, R22
	ADD  $16, R22, R22
	MOVD 32(R20), R0
	MOVD R21, R1
	MOVD R22, R2
	MOVD $221, R8
	SVC

	// execveat(exe, "", argv, envp, AT_EMPTY_PATH)
	MOVD 16(R20), R0
	MOVD 40(R20), R1
	MOVD R21, R2
	MOVD R22, R3
	MOVD $0x1000, R4
	MOVD $281, R8
	SVC

fail:
	// write(2, message, length); exit_group(125)
	MOVD $2, R0
	MOVD 48(R20), R1
	MOVD 56(R20), R2
	MOVD $64, R8
	SVC
	MOVD $125, R0
	MOVD $94, R8
	SVC
	BRK

// func joinerCode() *byte
TEXT ·joinerCode(SB), NOSPLIT, $0-8
	MOVD $·joiner(SB), R0
	MOVD R0, ret+0(FP)
	RET
