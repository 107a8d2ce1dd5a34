/* Starts a program with lower limits: `launch [nofile=N] [memlock=N] [refuse=CALL:ERRNO]... -- PROGRAM ARGS`.
 * `refuse` makes a system call fail with that error number, by a seccomp filter. The process keeps its id. */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static int limit(int resource, unsigned long value) {
    struct rlimit both = {value, value};
    return setrlimit(resource, &both);
}

static int refuse(unsigned call, unsigned error) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

int main(int count, char **args) {
    for (int i = 1; i < count; i++) {
        unsigned long value;
        unsigned call, error;
        int result = -1;
        if (strcmp(args[i], "--") == 0) {
            execv(args[i + 1], args + i + 1);
            break;
        }
        if (sscanf(args[i], "nofile=%lu", &value) == 1) result = limit(RLIMIT_NOFILE, value);
        if (sscanf(args[i], "memlock=%lu", &value) == 1) result = limit(RLIMIT_MEMLOCK, value);
        if (sscanf(args[i], "refuse=%u:%u", &call, &error) == 2) result = refuse(call, error);
        if (result) {
            perror(args[i]);
            return 125;
        }
    }
    perror("launch");
    return 126;
}
