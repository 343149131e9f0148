/* Loaded with LD_PRELOAD: the n-th call of one system function fails, or does only a part of it.
 *     gcc -shared -fPIC -O1 preload_io.c -o preload_io.so -ldl
 *     AQ_IO_CALL=pread AQ_IO_NTH=3 AQ_IO_FAULT=EIO|ENOSPC|EINTR|SHORT|…  which call, and how
 *     AQ_IO_FAULT=KILL  the process dies (SIGKILL) instead of the call
 *     AQ_IO_COUNTS=FILE  the number of calls of each function is written there at the end
 * The calls themselves are made by syscall(2), so that nothing here allocates. Linux only. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN, PREAD, PWRITE, FTRUNCATE, FSYNC, CLOSE, RENAME, RENAMEAT2, MKDIR, UNLINK, RMDIR, FLOCK,
       OPENDIR, READDIR, CLOSEDIR, MMAP, MUNMAP, LSEEK, STAT, FSTAT, READLINK, REALPATH, IOCTL, LINK,
       WRITE, CALLS };

static const char *const names[CALLS] = {
    "open", "pread", "pwrite", "ftruncate", "fsync", "close", "rename", "renameat2", "mkdir",
    "unlink", "rmdir", "flock", "opendir", "readdir", "closedir", "mmap", "munmap", "lseek", "stat",
    "fstat", "readlink", "realpath", "ioctl", "link", "write"
};
static const struct { const char *name; int code; } faults[] = {
    { "EIO", EIO }, { "ENOSPC", ENOSPC }, { "EINTR", EINTR }, { "EACCES", EACCES },
    { "EMFILE", EMFILE }, { "ENOSYS", ENOSYS }, { "EINVAL", EINVAL }, { "ENOMEM", ENOMEM },
    { "EROFS", EROFS }, { "EDQUOT", EDQUOT }, { "EWOULDBLOCK", EWOULDBLOCK }
};
static unsigned long counts[CALLS];
static int call = -1, code, shortened, killed;
static unsigned long nth;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("AQ_IO_CALL"), *number = getenv("AQ_IO_NTH");
    const char *fault = getenv("AQ_IO_FAULT");
    if (!name || !number || !fault) return;
    for (int i = 0; i < CALLS; i++)
        if (strcmp(names[i], name) == 0) call = i;
    nth = strtoul(number, NULL, 10);
    shortened = strcmp(fault, "SHORT") == 0;
    killed = strcmp(fault, "KILL") == 0;
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        if (strcmp(faults[i].name, fault) == 0) code = faults[i].code;
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("AQ_IO_COUNTS");
    FILE *out = path ? fopen(path, "w") : NULL;
    if (!out) return;
    for (int i = 0; i < CALLS; i++) fprintf(out, "%s %lu\n", names[i], counts[i]);
    fclose(out);
}

/* Whether this call is the one. */
static int hit(int which) {
    unsigned long number = __atomic_add_fetch(&counts[which], 1, __ATOMIC_RELAXED);
    if (which != call || number != nth) return 0;
    if (killed) kill(getpid(), SIGKILL);
    return 1;
}

/* 1: fail, errno is set */
static int fails(int which) {
    if (!hit(which) || shortened) return 0;
    errno = code;
    return 1;
}

/* For calls with a size: 1: fail; a short one moves half of it. */
static int fails_sized(int which, size_t *size) {
    if (!hit(which)) return 0;
    if (shortened) {
        if (*size > 1) *size /= 2;
        return 0;
    }
    errno = code;
    return 1;
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static int opened(const char *path, int flags, int mode) {
    if (fails(OPEN)) return -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    int mode = flags & O_CREAT ? va_arg(list, int) : 0;
    va_end(list);
    return opened(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    int mode = flags & O_CREAT ? va_arg(list, int) : 0;
    va_end(list);
    return opened(path, flags, mode);
}
int __open_2(const char *path, int flags) { return opened(path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(path, flags, 0); }

ssize_t pread64(int file, void *data, size_t size, off64_t at) {
    if (fails_sized(PREAD, &size)) return -1;
    return syscall(SYS_pread64, file, data, size, at);
}
ssize_t pread(int file, void *data, size_t size, off_t at) { return pread64(file, data, size, at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    if (fails_sized(PWRITE, &size)) return -1;
    return syscall(SYS_pwrite64, file, data, size, at);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    return pwrite64(file, data, size, at);
}
ssize_t write(int file, const void *data, size_t size) {
    if (fails_sized(WRITE, &size)) return -1;
    return syscall(SYS_write, file, data, size);
}
int ftruncate64(int file, off64_t size) {
    return fails(FTRUNCATE) ? -1 : (int)syscall(SYS_ftruncate, file, size);
}
int ftruncate(int file, off_t size) { return ftruncate64(file, size); }
int fsync(int file) { return fails(FSYNC) ? -1 : (int)syscall(SYS_fsync, file); }
int close(int file) { /* as the system does it: closed all the same */
    int result = (int)syscall(SYS_close, file);
    return fails(CLOSE) ? -1 : result;
}
off64_t lseek64(int file, off64_t at, int from) {
    return fails(LSEEK) ? -1 : syscall(SYS_lseek, file, at, from);
}
off_t lseek(int file, off_t at, int from) { return lseek64(file, at, from); }
int rename(const char *from, const char *to) {
    return fails(RENAME) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int mkdir(const char *path, mode_t mode) {
    return fails(MKDIR) ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
int unlink(const char *path) {
    return fails(UNLINK) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
int rmdir(const char *path) {
    return fails(RMDIR) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}
int link(const char *from, const char *to) {
    return fails(LINK) ? -1 : (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int flock(int file, int how) { return fails(FLOCK) ? -1 : (int)syscall(SYS_flock, file, how); }
int ioctl(int file, unsigned long request, ...) {
    va_list list;
    va_start(list, request);
    long argument = va_arg(list, long);
    va_end(list);
    return fails(IOCTL) ? -1 : (int)syscall(SYS_ioctl, file, request, argument);
}
ssize_t readlink(const char *path, char *out, size_t size) {
    return fails(READLINK) ? -1 : syscall(SYS_readlinkat, AT_FDCWD, path, out, size);
}

DIR *opendir(const char *path) {
    DIR *(*real)(const char *) = (DIR * (*)(const char *)) next("opendir");
    return fails(OPENDIR) ? NULL : real(path);
}
struct dirent *readdir(DIR *folder) {
    struct dirent *(*real)(DIR *) = (struct dirent * (*)(DIR *)) next("readdir");
    return fails(READDIR) ? NULL : real(folder);
}
struct dirent64 *readdir64(DIR *folder) {
    struct dirent64 *(*real)(DIR *) = (struct dirent64 * (*)(DIR *)) next("readdir64");
    return fails(READDIR) ? NULL : real(folder);
}
int closedir(DIR *folder) {
    int (*real)(DIR *) = (int (*)(DIR *))next("closedir");
    int result = real(folder);
    return fails(CLOSEDIR) ? -1 : result;
}
void *mmap64(void *at, size_t size, int rights, int flags, int file, off64_t offset) {
    if (file >= 0 && fails(MMAP)) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, size, rights, flags, file, offset);
}
void *mmap(void *at, size_t size, int rights, int flags, int file, off_t offset) {
    return mmap64(at, size, rights, flags, file, offset);
}
int munmap(void *at, size_t size) {
    int result = (int)syscall(SYS_munmap, at, size);
    return fails(MUNMAP) ? -1 : result;
}
int stat64(const char *path, struct stat64 *about) {
    int (*real)(const char *, struct stat64 *) =
        (int (*)(const char *, struct stat64 *))next("stat64");
    return fails(STAT) ? -1 : real(path, about);
}
int stat(const char *path, struct stat *about) {
    int (*real)(const char *, struct stat *) = (int (*)(const char *, struct stat *))next("stat");
    return fails(STAT) ? -1 : real(path, about);
}
int fstat64(int file, struct stat64 *about) {
    int (*real)(int, struct stat64 *) = (int (*)(int, struct stat64 *))next("fstat64");
    return fails(FSTAT) ? -1 : real(file, about);
}
int fstat(int file, struct stat *about) {
    int (*real)(int, struct stat *) = (int (*)(int, struct stat *))next("fstat");
    return fails(FSTAT) ? -1 : real(file, about);
}
char *realpath(const char *path, char *out) {
    char *(*real)(const char *, char *) = (char *(*)(const char *, char *))next("realpath");
    return fails(REALPATH) ? NULL : real(path, out);
}

/* The library renames by syscall(2). */
long syscall(long number, ...) {
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    static long (*real)(long, ...);
    if (!real) real = (long (*)(long, ...))next("syscall");
    if (number == SYS_renameat2 && a[4] != 0 && fails(RENAMEAT2)) return -1;
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
