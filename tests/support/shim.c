/* Preloaded into the proxy to replace the wall clock, the resolver, full disks and io_uring_setup. EDGE_SHIM
 * names a directory: a file `clock` contains seconds to add to the wall clock, while a file `dns_down` exists no
 * name resolves, while a file `stuck` exists the first reactor blocks when it reads the clock, while a file
 * `disk_full` exists no file grows by a write at an offset: half of the first one is written, and while a file
 * `disk_stuck` exists such a write blocks. The monotonic clock is not changed. EDGE_SHIM_RING_FLAGS are flags of io_uring_setup, in hexadecimal, that are rejected. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int path(char *buffer, size_t size, const char *name) {
    const char *folder = getenv("EDGE_SHIM");
    if (!folder) return 0;
    snprintf(buffer, size, "%s/%s", folder, name);
    return 1;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    char name[512], thread[16] = "";
    prctl(PR_GET_NAME, thread);
    while (!strcmp(thread, "reactor-0") && path(name, sizeof name, "stuck") && access(name, F_OK) == 0) usleep(10000);
    int result = real(id, now);
    if (result == 0 && id == CLOCK_REALTIME && path(name, sizeof name, "clock")) {
        FILE *file = fopen(name, "r");
        long offset = 0;
        if (file) {
            if (fscanf(file, "%ld", &offset) == 1) now->tv_sec += offset;
            fclose(file);
        }
    }
    return result;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (!real)
        real = (int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
    char name[512];
    if (path(name, sizeof name, "dns_down") && access(name, F_OK) == 0) return EAI_NONAME;
    return real(node, service, hints, found);
}

/* What `std::os::unix::fs::FileExt` writes with. */
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    char name[512];
    struct stat found;
    int grows = fstat(file, &found) == 0 && offset + (off64_t)count > found.st_size;
    while (grows && path(name, sizeof name, "disk_stuck") && access(name, F_OK) == 0) usleep(1000);
    if (!grows || !path(name, sizeof name, "disk_full") || access(name, F_OK)) return real(file, bytes, count, offset);
    if (count > 64) return real(file, bytes, count / 2, offset);
    errno = ENOSPC;
    return -1;
}

/* How a file grows without being written. */
int ftruncate64(int file, off64_t length) {
    static int (*real)(int, off64_t);
    if (!real) real = (int (*)(int, off64_t))dlsym(RTLD_NEXT, "ftruncate64");
    char name[512];
    struct stat found;
    int grows = fstat(file, &found) == 0 && length > found.st_size;
    if (!grows || !path(name, sizeof name, "disk_full") || access(name, F_OK)) return real(file, length);
    errno = ENOSPC;
    return -1;
}

/* With EDGE_SHIM_CPUS the process believes that it may use this many CPUs. Threads cannot be pinned to those that
 * do not exist, and run anywhere. */
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    static int (*real)(pid_t, size_t, cpu_set_t *);
    if (!real) real = (int (*)(pid_t, size_t, cpu_set_t *))dlsym(RTLD_NEXT, "sched_getaffinity");
    const char *cpus = getenv("EDGE_SHIM_CPUS");
    if (!cpus) return real(pid, size, set);
    memset(set, 0, size);
    for (int cpu = 0; cpu < atoi(cpus); cpu++) CPU_SET_S(cpu, size, set);
    return 0;
}

/* Rust's io-uring makes its calls through this function. The flags are the third word of the parameters. */
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    const char *refused = getenv("EDGE_SHIM_RING_FLAGS");
    if (number == SYS_io_uring_setup && refused && ((unsigned *)a[1])[2] & strtoul(refused, 0, 16)) {
        errno = EINVAL;
        return -1;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
