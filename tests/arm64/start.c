/* Starts an executable of another architecture by qemu-user, with the name and the arguments that it was started
 * with itself. Compiled with EMULATOR, PREFIX (of its loader and libraries) and EXECUTABLE as strings, and linked
 * statically: what LD_PRELOAD names is for the executable. The process keeps its id. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **args) {
    char **all = calloc(count + 6, sizeof *all);
    char *first[] = {EMULATOR, "-L", PREFIX, "-0", args[0], EXECUTABLE};
    if (!all) return 125;
    memcpy(all, first, sizeof first);
    for (int i = 1; i < count; i++) all[i + 5] = args[i];
    execv(EMULATOR, all);
    perror(EMULATOR);
    return 126;
}
