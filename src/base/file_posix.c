/* Files on POSIX systems. */
#include "file_system.h"

#if !defined(ARROWQUANT_NO_STDIO) && !defined(_WIN32)

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#  include <sys/ioctl.h>
#  include <sys/syscall.h>
#endif

/* On 32-bit glibc and Android off_t may have 32 bits, and whoever includes this file first has
 * chosen; the functions named 64 are always there. */
#if defined(__GLIBC__)
#  define AQ_OFFSET __off64_t
#elif defined(__ANDROID__)
#  define AQ_OFFSET off64_t
#endif
#if defined(AQ_OFFSET)
#  define AQ_PREAD pread64
#  define AQ_PWRITE pwrite64
#  define AQ_FTRUNCATE ftruncate64
#  define AQ_LSEEK lseek64
#else
#  define AQ_OFFSET off_t
#  define AQ_PREAD pread
#  define AQ_PWRITE pwrite
#  define AQ_FTRUNCATE ftruncate
#  define AQ_LSEEK lseek
#endif

/* -std=c99 hides what ISO C lacks, and a #define here comes too late when a system header has been
 * included before. So what may be hidden is declared, which C allows any number of times; C++
 * compilers hide nothing. */
#if defined(__linux__) && !defined(__ANDROID__) && !defined(__cplusplus)
extern ssize_t AQ_PREAD(int file, void *data, size_t size, AQ_OFFSET offset);
extern ssize_t AQ_PWRITE(int file, const void *data, size_t size, AQ_OFFSET offset);
extern int AQ_FTRUNCATE(int file, AQ_OFFSET size);
extern AQ_OFFSET AQ_LSEEK(int file, AQ_OFFSET offset, int from);
extern int fsync(int file);
#  if defined(SYS_sync_file_range)
extern int sync_file_range(int file, AQ_OFFSET offset, AQ_OFFSET size, unsigned flags);
#  endif
extern ssize_t readlink(const char *path, char *out, size_t size);
extern char *realpath(const char *path, char *out);
extern long syscall(long number, ...);
#endif

#if defined(O_CLOEXEC)
#  define AQ_O_CLOEXEC O_CLOEXEC
#elif defined(__O_CLOEXEC)
#  define AQ_O_CLOEXEC __O_CLOEXEC
#else
#  define AQ_O_CLOEXEC 0
#endif
#if defined(__O_LARGEFILE)
#  define AQ_O_LARGEFILE __O_LARGEFILE
#elif defined(O_LARGEFILE)
#  define AQ_O_LARGEFILE O_LARGEFILE
#else
#  define AQ_O_LARGEFILE 0
#endif
#define AQ_IO_LARGEST ((size_t)1 << 30) /* some systems refuse more than 2^31 − 1 at once */

/* strerror depends on the locale and may share a buffer between threads. */
static const char *aq_errno_text(int code) {
    switch (code) {
    case ENOENT: return "no such file or folder";
    case EACCES: return "permission denied; check the rights of the file and its folders";
    case EPERM: return "the system does not permit it";
    case EROFS: return "the file system is read-only; write elsewhere";
    case ENOSPC: return "no space left on the device; free some or write elsewhere";
    case EEXIST: return "it exists already";
    case ENOTDIR: return "a part of the path is not a folder";
    case EISDIR: return "it is a folder";
    case ENOTEMPTY: return "the folder is not empty";
    case EIO: return "the device reports an error";
    case EMFILE: return "this process has too many open files";
    case ENFILE: return "the system has too many open files";
    case ENAMETOOLONG: return "the name is too long";
    case ELOOP: return "too many symbolic links";
    case EFBIG: return "larger than the file system or the process's limit allows";
    case EXDEV: return "the two paths are on different file systems";
    case EBUSY: return "it is in use";
    case ENOMEM: return "out of memory";
    case EINVAL: return "the file system does not support it";
#ifdef EDQUOT
    case EDQUOT: return "the disk quota is used up; free some or write elsewhere";
#endif
    default: return NULL;
    }
}

AQ_LIB aq_status aq_system_fail(const char *path, const char *doing, aq_error *err) {
    int code = errno;
    const char *reason = aq_errno_text(code);
    aq_status status = code == EEXIST   ? AQ_ERR_EXISTS
                       : code == ENOMEM ? AQ_ERR_OUT_OF_MEMORY : AQ_ERR_IO;
    if (reason) return aq_fail(err, status, "%s: cannot %s: %s", path, doing, reason);
    return aq_fail(err, status, "%s: cannot %s: system error %d", path, doing, code);
}

/* ---- one open file */

static int aq_descriptor(const aq_file *file) { return (int)file->handle; }

static int aq_open_descriptor(const char *path, int flags) {
    int descriptor;
    do {
        descriptor = open(path, flags | AQ_O_CLOEXEC | AQ_O_LARGEFILE | O_NOCTTY, 0666);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor >= 0 && !AQ_O_CLOEXEC) (void)fcntl(descriptor, F_SETFD, FD_CLOEXEC);
    return descriptor;
}

/* Without O_NONBLOCK the opening of a pipe would wait for its other end. */
AQ_LIB aq_status aq_file_open(aq_file *file, const char *path, uint64_t *size, aq_error *err) {
    struct stat about;
    int descriptor = aq_open_descriptor(path, O_RDONLY | O_NONBLOCK);
    file->handle = -1;
    file->path = path;
    if (descriptor < 0) return aq_system_fail(path, "open", err);
    if (fstat(descriptor, &about) == 0 && !S_ISREG(about.st_mode)) {
        bool folder = S_ISDIR(about.st_mode) != 0;
        (void)close(descriptor);
        return aq_fail(err, AQ_ERR_IO, "%s: is %s, not a file", path,
                       folder ? "a folder" : "a device or pipe");
    }
    AQ_OFFSET end = AQ_LSEEK(descriptor, 0, SEEK_END);
    if (end < 0) {
        aq_status status = aq_system_fail(path, "tell the size", err);
        (void)close(descriptor);
        return status;
    }
    file->handle = descriptor;
    if (size) *size = (uint64_t)end;
    return AQ_OK;
}

AQ_LIB aq_status aq_file_create(aq_file *file, const char *path, aq_error *err) {
    file->handle = aq_open_descriptor(path, O_RDWR | O_CREAT | O_EXCL);
    file->path = path;
    return file->handle < 0 ? aq_system_fail(path, "create", err) : AQ_OK;
}

static bool aq_offset_fits(uint64_t offset, size_t size) {
    uint64_t end;
    if (!aq_add_u64(offset, size, &end) || end > INT64_MAX) return false;
    return sizeof(AQ_OFFSET) >= 8 || end <= INT32_MAX;
}

AQ_LIB aq_status aq_file_read(const aq_file *file, uint64_t offset, void *data, size_t size,
                              aq_error *err) {
    char *to = (char *)data;
    size_t done = 0;
    if (!aq_offset_fits(offset, size)) {
        errno = EFBIG;
        return aq_system_fail(file->path, "read", err);
    }
    while (done < size) {
        size_t part = size - done < AQ_IO_LARGEST ? size - done : AQ_IO_LARGEST;
        ssize_t got = AQ_PREAD(aq_descriptor(file), to + done, part, (AQ_OFFSET)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return aq_system_fail(file->path, "read", err);
        if (got == 0)
            return aq_fail_tensor(err, AQ_ERR_CORRUPT, "", offset + done,
                                  "%s: ends at byte %llu where %zu more are expected; it is "
                                  "truncated, or was changed meanwhile", file->path,
                                  (unsigned long long)(offset + done), size - done);
        done += (size_t)got;
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_file_write(const aq_file *file, uint64_t offset, const void *data, size_t size,
                               aq_error *err) {
    const char *from = (const char *)data;
    size_t done = 0;
    if (!aq_offset_fits(offset, size)) {
        errno = EFBIG;
        return aq_system_fail(file->path, "write", err);
    }
    while (done < size) {
        size_t part = size - done < AQ_IO_LARGEST ? size - done : AQ_IO_LARGEST;
        ssize_t put = AQ_PWRITE(aq_descriptor(file), from + done, part,
                                (AQ_OFFSET)(offset + done));
        if (put < 0 && errno == EINTR) continue;
        if (put == 0) errno = ENOSPC;
        if (put <= 0) return aq_system_fail(file->path, "write", err);
        done += (size_t)put;
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_file_truncate(const aq_file *file, uint64_t size, aq_error *err) {
    int result = -1;
    errno = EFBIG;
    if (aq_offset_fits(size, 0)) {
        do {
            result = AQ_FTRUNCATE(aq_descriptor(file), (AQ_OFFSET)size);
        } while (result != 0 && errno == EINTR);
    }
    return result == 0 ? AQ_OK : aq_system_fail(file->path, "resize", err);
}

/* The device writes while the rest is computed, not all of it at the end. Errors are those of the sync
 * then. */
AQ_LIB void aq_file_begin_sync(const aq_file *file, uint64_t offset, uint64_t size) {
#if defined(__linux__) && !defined(__ANDROID__) && defined(SYS_sync_file_range)
    const unsigned begin = 2; /* SYNC_FILE_RANGE_WRITE */
    if (aq_offset_fits(offset, (size_t)size))
        (void)sync_file_range(aq_descriptor(file), (AQ_OFFSET)offset, (AQ_OFFSET)size, begin);
#else
    (void)file;
    (void)offset;
    (void)size;
#endif
}

static int aq_sync_descriptor(int descriptor) {
    int result;
#ifdef F_FULLFSYNC /* fsync of macOS stops at the drive's cache */
    if (fcntl(descriptor, F_FULLFSYNC) == 0) return 0;
#endif
    do {
        result = fsync(descriptor);
    } while (result != 0 && errno == EINTR);
    return result;
}

AQ_LIB aq_status aq_file_sync(const aq_file *file, aq_error *err) {
    if (aq_sync_descriptor(aq_descriptor(file)) == 0) return AQ_OK;
    return aq_system_fail(file->path, "sync", err);
}

/* After EINTR the descriptor is gone on the systems that matter; again would be another's. */
AQ_LIB aq_status aq_file_close(aq_file *file, aq_error *err) {
    if (file->handle < 0) return AQ_OK;
    int result = close(aq_descriptor(file));
    file->handle = -1;
    if (result == 0 || errno == EINTR) return AQ_OK;
    return aq_system_fail(file->path, "close", err);
}

AQ_LIB aq_status aq_map_file(aq_map *map, const char *path, aq_error *err) {
    aq_file file = AQ_FILE_CLOSED;
    uint64_t size;
    void *data = NULL;
    map->data = NULL;
    map->size = 0;
    map->handle = -1;
    aq_status status = aq_file_open(&file, path, &size, err);
    if (status != AQ_OK) return status;
    if (size > SIZE_MAX / 2) {
        status = aq_fail(err, AQ_ERR_OUT_OF_MEMORY, "%s: %llu bytes do not fit the address space",
                         path, (unsigned long long)size);
    } else if (size) {
        data = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, aq_descriptor(&file), 0);
        if (data == MAP_FAILED) status = aq_system_fail(path, "map", err);
    }
    (void)aq_file_close(&file, NULL);
    if (status != AQ_OK) return status;
    map->data = data;
    map->size = size;
    return AQ_OK;
}

AQ_LIB void aq_unmap_file(aq_map *map) {
    void *data;
    memcpy(&data, &map->data, sizeof(data)); /* drops the const */
    if (data) (void)munmap(data, (size_t)map->size);
    map->data = NULL;
    map->size = 0;
}

#if defined(__linux__)
AQ_LIB bool aq_file_reflink(const aq_file *to, const aq_file *from) {
    const unsigned long clone = _IOW(0x94, 9, int); /* FICLONE of linux/fs.h */
    return ioctl(aq_descriptor(to), clone, aq_descriptor(from)) == 0;
}
#else
AQ_LIB bool aq_file_reflink(const aq_file *to, const aq_file *from) {
    (void)to;
    (void)from;
    return false;
}
#endif

/* ---- paths and folders */

AQ_LIB bool aq_is_separator(char c) { return c == '/'; }
AQ_LIB char aq_separator(void) { return '/'; }

/* Without 64-bit sizes stat cannot tell about large files, though they are there. */
static aq_path_kind aq_path_stat_large(const char *path, uint64_t *size) {
    aq_file file = AQ_FILE_CLOSED;
    DIR *folder = opendir(path);
    if (folder) {
        (void)closedir(folder);
        return AQ_PATH_FOLDER;
    }
    if (aq_file_open(&file, path, size, NULL) == AQ_OK) (void)aq_file_close(&file, NULL);
    return AQ_PATH_FILE;
}

/* What is there and cannot be looked at is taken for a file: opening it will tell why. Taken for
 * absent, it would be left out without a word. */
AQ_LIB aq_path_kind aq_path_stat(const char *path, uint64_t *size) {
    struct stat about;
    *size = 0;
    if (stat(path, &about) != 0) {
        if (errno == EOVERFLOW) return aq_path_stat_large(path, size);
        return errno == ENOENT || errno == ENOTDIR ? AQ_PATH_NONE : AQ_PATH_FILE;
    }
    if (S_ISDIR(about.st_mode)) return AQ_PATH_FOLDER;
    if (!S_ISREG(about.st_mode)) return AQ_PATH_OTHER;
    *size = (uint64_t)about.st_size;
    return AQ_PATH_FILE;
}

/* What cannot be looked at may be a link: nobody then walks into it to remove what is there. */
AQ_LIB bool aq_path_is_link(const char *path) {
    char first;
    if (readlink(path, &first, 1) >= 0) return true;
    return errno != EINVAL && errno != ENOENT && errno != ENOTDIR;
}

AQ_LIB uint64_t aq_path_modified(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 ? (uint64_t)about.st_mtime : 0;
}

AQ_LIB aq_status aq_scan_folder(const char *path, aq_visit_fn visit, void *user, aq_error *err) {
    aq_status status = AQ_OK;
    DIR *folder = opendir(path);
    if (!folder) return aq_system_fail(path, "list", err);
    while (status == AQ_OK) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (!entry) {
            if (errno != 0) status = aq_system_fail(path, "list", err);
            break;
        }
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        status = visit(user, name, err);
    }
    (void)closedir(folder);
    return status;
}

AQ_LIB aq_status aq_remove_one(const char *path, bool folder, aq_error *err) {
    int result = folder ? rmdir(path) : unlink(path);
    if (result == 0 || errno == ENOENT) return AQ_OK;
    return aq_system_fail(path, "remove", err);
}

AQ_LIB aq_status aq_real_path(aq_arena *arena, const char *path, char **out, aq_error *err) {
    *out = NULL;
    char *found = realpath(path, NULL);
    if (!found) return errno == ENOENT ? AQ_OK : aq_system_fail(path, "resolve", err);
    *out = aq_arena_string(arena, found);
    free(found);
    return *out ? AQ_OK : aq_fail_memory(err, strlen(path));
}

AQ_LIB aq_status aq_make_folder(const char *path, aq_error *err) {
    return mkdir(path, 0777) == 0 ? AQ_OK : aq_system_fail(path, "create the folder", err);
}

AQ_LIB aq_status aq_sync_folder(const char *path, aq_error *err) {
    int descriptor = aq_open_descriptor(path, O_RDONLY);
    aq_status status = AQ_OK;
    if (descriptor < 0) return aq_system_fail(path, "open", err);
    /* some file systems keep no such promise for folders; that is not the file's fault */
    if (aq_sync_descriptor(descriptor) != 0 && errno != EINVAL && errno != EROFS &&
        errno != ENOSYS && errno != EBADF)
        status = aq_system_fail(path, "sync", err);
    (void)close(descriptor);
    return status;
}

/* ---- renaming */

#if defined(__linux__) && defined(SYS_renameat2)
/* 0, or an errno; ENOSYS or EINVAL where kernel or file system cannot */
static int aq_rename_special(const char *from, const char *to, bool exchange) {
    const long here = -100; /* AT_FDCWD */
    long result = syscall(SYS_renameat2, here, from, here, to, exchange ? 2L : 1L);
    return result == 0 ? 0 : errno;
}
#elif defined(__APPLE__) && defined(RENAME_EXCL)
static int aq_rename_special(const char *from, const char *to, bool exchange) {
    return renamex_np(from, to, exchange ? RENAME_SWAP : RENAME_EXCL) == 0 ? 0 : errno;
}
#else
static int aq_rename_special(const char *from, const char *to, bool exchange) {
    (void)from;
    (void)to;
    (void)exchange;
    return ENOSYS;
}
#endif

static bool aq_rename_is_missing(int code) {
#ifdef ENOTSUP
    if (code == ENOTSUP) return true;
#endif
    return code == ENOSYS || code == EINVAL || code == EOPNOTSUPP;
}

/* The target's name is taken first, by a call that fails when it exists: link for a file, mkdir
 * for a folder, over which rename then puts the real one. 0 or an errno. */
static int aq_rename_by_claim(const char *from, const char *to) {
    if (aq_path_kind_of(from) == AQ_PATH_FOLDER && !aq_path_is_link(from)) {
        if (mkdir(to, 0777) != 0) return errno;
        if (rename(from, to) == 0) return 0;
        int code = errno;
        (void)rmdir(to);
        return code;
    }
    if (link(from, to) == 0) return unlink(from) == 0 ? 0 : errno;
    if (errno == EEXIST) return EEXIST;
    /* a file system without hard links: look first, which leaves a moment's gap */
    if (aq_path_is_link(to) || aq_path_kind_of(to) != AQ_PATH_NONE) return EEXIST;
    return rename(from, to) == 0 ? 0 : errno;
}

AQ_LIB aq_status aq_rename(const char *from, const char *to, aq_rename_mode mode, aq_error *err) {
    int code;
    if (mode == AQ_RENAME_REPLACE) {
        code = rename(from, to) == 0 ? 0 : errno;
    } else {
        code = aq_rename_special(from, to, mode == AQ_RENAME_EXCHANGE);
        if (mode == AQ_RENAME_EXCHANGE && aq_rename_is_missing(code))
            return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: this system cannot exchange it with %s in "
                           "one step", to, from);
        if (mode == AQ_RENAME_NOREPLACE && aq_rename_is_missing(code))
            code = aq_rename_by_claim(from, to);
    }
    if (code == 0) return AQ_OK;
    if (code == EEXIST)
        return aq_fail(err, AQ_ERR_EXISTS, "%s: it exists already; %s is not renamed to it", to,
                       from);
    errno = code;
    if (code == ENOENT) return aq_system_fail(from, "rename", err);
    return aq_system_fail(to, "rename to it", err);
}

/* ---- locks */

/* Between creation and flock a lock looks like one that a dead process left. Who takes it for such
 * writes a byte into it while holding it, which tells its creator that it came too late. */
AQ_LIB aq_status aq_lock_create(aq_file *lock, const char *path, aq_error *err) {
    struct stat about;
    aq_status status = aq_file_create(lock, path, err);
    if (status != AQ_OK) return status;
    int result;
    do {
        result = flock(aq_descriptor(lock), LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    bool late = result != 0 && errno == EWOULDBLOCK;
    /* where flock does not work at all nobody will think the lock stale either */
    if (!late && fstat(aq_descriptor(lock), &about) == 0) late = about.st_size != 0;
    if (!late) return AQ_OK;
    (void)aq_file_close(lock, NULL);
    return aq_fail(err, AQ_ERR_EXISTS, "%s: another process is removing it", path);
}

AQ_LIB bool aq_lock_is_stale(const char *path) {
    struct stat about;
    int descriptor = aq_open_descriptor(path, O_RDWR | O_NONBLOCK);
    bool stale = false;
    if (descriptor < 0) return false;
    /* without a link its owner has just released it, and the path may be another's by now */
    if (flock(descriptor, LOCK_EX | LOCK_NB) == 0 && fstat(descriptor, &about) == 0 &&
        about.st_nlink > 0)
        stale = write(descriptor, "x", 1) == 1;
    (void)close(descriptor);
    return stale;
}

AQ_LIB void aq_lock_release(aq_file *lock) {
    if (lock->handle < 0) return;
    (void)unlink(lock->path);
    (void)aq_file_close(lock, NULL);
}

/* ---- time and process */

#if defined(__linux__)
/* By the system call, because -std=c99 hides struct timespec. */
AQ_LIB double aq_clock_seconds(void) {
    const long monotonic = 1;
#  if defined(SYS_clock_gettime64)
    int64_t wide[2] = { 0, 0 };
    if (syscall(SYS_clock_gettime64, monotonic, wide) == 0)
        return (double)wide[0] + 1e-9 * (double)wide[1];
#  endif
#  if defined(SYS_clock_gettime)
    long native[4] = { 0, 0, 0, 0 };
    if (syscall(SYS_clock_gettime, monotonic, native) == 0)
        return (double)native[0] + 1e-9 * (double)native[1];
#  endif
    return 0.0;
}
#else
AQ_LIB double aq_clock_seconds(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 0.0;
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
#endif

AQ_LIB uint64_t aq_process_id(void) { return (uint64_t)getpid(); }

#undef AQ_OFFSET
#undef AQ_PREAD
#undef AQ_PWRITE
#undef AQ_FTRUNCATE
#undef AQ_LSEEK
#undef AQ_O_CLOEXEC
#undef AQ_O_LARGEFILE
#undef AQ_IO_LARGEST
#endif /* !ARROWQUANT_NO_STDIO && !_WIN32 */
