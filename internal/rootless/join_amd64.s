#include "textflag.h"

// joiner is copied into a file of its own (join.go) and never called here. It reads its parameters at
// base+paramsAt: user, mnt, exe, cwd, path, empty word, message, length of the message. argc, argv and
// envp are on the stack, as for every program.
TEXT ·joiner(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ SP, R12
	MOVQ $0x400400, R13

	// setns(user, CLONE_NEWUSER)
	MOVQ 0(R13), DI
	MOVQ $0x10000000, SI
	MOVQ $308, AX
	SYSCALL
	TESTQ AX, AX
	JNE  fail

	// setns(mnt, CLONE_NEWNS)
	MOVQ 8(R13), DI
	MOVQ $0x20000, SI
	MOVQ $308, AX
	SYSCALL
	TESTQ AX, AX
	JNE  fail

	// close(user), close(mnt)
	MOVQ 0(R13), DI
	MOVQ $3, AX
	SYSCALL
	MOVQ 8(R13), DI
	MOVQ $3, AX
	SYSCALL

	// chdir(cwd): setns went to the root
	MOVQ 24(R13), DI
	MOVQ $80, AX
	SYSCALL

	// fcntl(exe, F_SETFD, FD_CLOEXEC)
	MOVQ 16(R13), DI
	MOVQ $2, SI
	MOVQ $1, DX
	MOVQ $72, AX
	SYSCALL

	// execve(path, argv, envp): the file as it is seen in this mount namespace
	LEAQ 8(R12), R14
	MOVQ 0(R12), R15
	LEAQ 16(R12)(R15*8), R15
	MOVQ 32(R13), DI
	MOVQ R14, SI
	MOVQ R15, DX
	MOVQ $59, AX
	SYSCALL

	// execveat(exe, "", argv, envp, AT_EMPTY_PATH): it was deleted meanwhile
	MOVQ 16(R13), DI
	MOVQ 40(R13), SI
	MOVQ R14, DX
	MOVQ R15, R10
	MOVQ $0x1000, R8
	MOVQ $322, AX
	SYSCALL

fail:
	// write(2, message, length); exit_group(125)
	MOVQ $2, DI
	MOVQ 48(R13), SI
	MOVQ 56(R13), DX
	MOVQ $1, AX
	SYSCALL
	MOVQ $125, DI
	MOVQ $231, AX
	SYSCALL
	INT  $3

// func joinerCode() *byte
TEXT ·joinerCode(SB), NOSPLIT, $0-8
	LEAQ ·joiner(SB), AX
	MOVQ AX, ret+0(FP)
	RET
