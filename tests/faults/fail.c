/* Makes a call on the file system fail, or kills the process there. Built and used by faults/injection.py.

   FAULT_FOLDER   only calls on what lies below this folder count
   FAULT_CALL     open, write, fsync, rename or unlink
   FAULT_AT       the number of the call, from 1; 0 counts only
   FAULT_ERRNO    what it fails with; 0 kills the process with SIGKILL just before the call
   FAULT_LASTS    1: all later calls of this kind fail, too, as on a full disk
   FAULT_COUNT    a file that gets one byte for each call

   The variables are read at each call, because a forked process gets its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int seen;

static int is_below(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    char absolute[2 * PATH_MAX + 2];
    if (!folder || !path) return 0;
    if (path[0] != '/') {
        char cwd[PATH_MAX];
        if (!getcwd(cwd, sizeof cwd)) return 0;
        snprintf(absolute, sizeof absolute, "%s/%s", cwd, path);
        path = absolute;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int is_descriptor_below(int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path[0] == '/' && is_below(path); /* not a pipe */
}

/* Return whether this call fails; errno is set. */
static int fails(const char *call, int is_inside) {
    const char *wanted = getenv("FAULT_CALL"), *at = getenv("FAULT_AT"), *count = getenv("FAULT_COUNT");
    if (!wanted || !at || strcmp(wanted, call) || !is_inside) return 0;
    seen++;
    if (count) {
        int descriptor = syscall(SYS_openat, AT_FDCWD, count, O_WRONLY | O_CREAT | O_APPEND, 0644);
        syscall(SYS_write, descriptor, ".", 1);
        syscall(SYS_close, descriptor);
    }
    const char *lasts = getenv("FAULT_LASTS"), *number = getenv("FAULT_ERRNO");
    int first = atoi(at), is_now = seen == first || (lasts && lasts[0] == '1' && seen > first);
    if (!first || !is_now) return 0;
    int code = number ? atoi(number) : EIO;
    if (!code) kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

#define REAL(type, name, ...)                                    \
    static type (*real)(__VA_ARGS__);                            \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define OPEN(symbol)                                             \
    int symbol(const char *path, int flags, ...) {               \
        REAL(int, #symbol, const char *, int, ...);              \
        va_list list;                                            \
        va_start(list, flags);                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                            \
        if (fails("open", is_below(path))) return -1;            \
        return real(path, flags, mode);                          \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int descriptor, const void *content, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (fails("write", is_descriptor_below(descriptor))) return -1;
    return real(descriptor, content, size);
}

int fsync(int descriptor) {
    REAL(int, "fsync", int);
    if (fails("fsync", is_descriptor_below(descriptor))) return -1;
    return real(descriptor);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (fails("rename", is_below(from))) return -1;
    return real(from, to);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (fails("unlink", is_below(path))) return -1;
    return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    if (fails("unlink", folder == AT_FDCWD ? is_below(path) : is_descriptor_below(folder))) return -1;
    return real(folder, path, flags);
}
