/* Files on Windows: UTF-8 outside, UTF-16 inside. */
#include "file_system.h"

#if !defined(ARROWQUANT_NO_STDIO) && defined(_WIN32)

#if !defined(WIN32_LEAN_AND_MEAN)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#  undef WIN32_LEAN_AND_MEAN
#else
#  include <windows.h>
#endif

#define AQ_WIDE_SIZE 4096
#define AQ_IO_LARGEST ((size_t)1 << 30)
#define AQ_SHARE_ALL (FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE)

static const char *aq_win32_text(DWORD code) {
    switch (code) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND: return "no such file or folder";
    case ERROR_ACCESS_DENIED: return "permission denied; check the rights of the file";
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION: return "another program uses it";
    case ERROR_WRITE_PROTECT: return "the disk is write-protected; write elsewhere";
    case ERROR_HANDLE_DISK_FULL:
    case ERROR_DISK_FULL: return "no space left on the disk; free some or write elsewhere";
    case ERROR_FILE_EXISTS:
    case ERROR_ALREADY_EXISTS: return "it exists already";
    case ERROR_DIR_NOT_EMPTY: return "the folder is not empty";
    case ERROR_DIRECTORY: return "it is not a folder";
    case ERROR_FILENAME_EXCED_RANGE: return "the path is too long";
    case ERROR_INVALID_NAME: return "the name is not allowed";
    case ERROR_NO_UNICODE_TRANSLATION: return "the path is not UTF-8";
    case ERROR_NOT_SAME_DEVICE: return "the two paths are on different disks";
    case ERROR_TOO_MANY_OPEN_FILES: return "this process has too many open files";
    case ERROR_CRC: return "the device reports an error";
    default: return NULL;
    }
}

AQ_LIB aq_status aq_system_fail(const char *path, const char *doing, aq_error *err) {
    DWORD code = GetLastError();
    const char *reason = aq_win32_text(code);
    aq_status status = AQ_ERR_IO;
    if (code == ERROR_FILE_EXISTS || code == ERROR_ALREADY_EXISTS) status = AQ_ERR_EXISTS;
    if (code == ERROR_NOT_ENOUGH_MEMORY || code == ERROR_OUTOFMEMORY)
        status = AQ_ERR_OUT_OF_MEMORY;
    if (reason) return aq_fail(err, status, "%s: cannot %s: %s", path, doing, reason);
    return aq_fail(err, status, "%s: cannot %s: system error %lu", path, doing,
                   (unsigned long)code);
}

/* The full path; a long one gets the prefix that lifts the limit of 260 characters. */
typedef struct aq_wide_path {
    WCHAR text[AQ_WIDE_SIZE + 16];
} aq_wide_path;

static bool aq_to_wide(const char *path, aq_wide_path *out) {
    WCHAR wide[AQ_WIDE_SIZE];
    WCHAR *start = out->text + 8;
    const WCHAR *prefix = L"\\\\?\\";
    size_t skip = 0, size;
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, AQ_WIDE_SIZE)) {
        if (GetLastError() == ERROR_INSUFFICIENT_BUFFER) SetLastError(ERROR_FILENAME_EXCED_RANGE);
        return false;
    }
    DWORD length = GetFullPathNameW(wide, AQ_WIDE_SIZE, start, NULL);
    if (!length) return false;
    if (length >= AQ_WIDE_SIZE) {
        SetLastError(ERROR_FILENAME_EXCED_RANGE);
        return false;
    }
    if (length < 240 || (start[0] == L'\\' && start[1] == L'\\' && start[2] == L'?')) {
        memmove(out->text, start, (length + 1) * sizeof(WCHAR));
        return true;
    }
    if (start[0] == L'\\' && start[1] == L'\\') {
        prefix = L"\\\\?\\UNC\\";
        skip = 2;
    }
    size = (size_t)lstrlenW(prefix);
    memmove(out->text + size, start + skip, (length - skip + 1) * sizeof(WCHAR));
    memcpy(out->text, prefix, size * sizeof(WCHAR));
    return true;
}

/* UTF-16 to UTF-8 in the arena; NULL when there is no memory. */
static char *aq_narrow(aq_arena *arena, const WCHAR *wide) {
    int size = WideCharToMultiByte(CP_UTF8, 0, wide, -1, NULL, 0, NULL, NULL);
    char *text = size > 0 ? (char *)aq_arena_alloc(arena, (size_t)size) : NULL;
    if (text) (void)WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, size, NULL, NULL);
    return text;
}

static HANDLE aq_open_handle(const char *path, DWORD access, DWORD share, DWORD creation,
                             DWORD flags) {
    aq_wide_path wide;
    if (!aq_to_wide(path, &wide)) return INVALID_HANDLE_VALUE;
    return CreateFileW(wide.text, access, share, NULL, creation, flags, NULL);
}

/* ---- one open file */

static HANDLE aq_handle(const aq_file *file) { return (HANDLE)file->handle; }

AQ_LIB aq_status aq_file_open(aq_file *file, const char *path, uint64_t *size, aq_error *err) {
    LARGE_INTEGER bytes;
    file->handle = -1;
    file->path = path;
    HANDLE handle = aq_open_handle(path, GENERIC_READ, AQ_SHARE_ALL, OPEN_EXISTING,
                                   FILE_ATTRIBUTE_NORMAL);
    if (handle == INVALID_HANDLE_VALUE) {
        if (aq_path_kind_of(path) == AQ_PATH_FOLDER)
            return aq_fail(err, AQ_ERR_IO, "%s: is a folder, not a file", path);
        return aq_system_fail(path, "open", err);
    }
    if (GetFileType(handle) != FILE_TYPE_DISK || !GetFileSizeEx(handle, &bytes)) {
        CloseHandle(handle);
        return aq_fail(err, AQ_ERR_IO, "%s: is a device or pipe, not a file", path);
    }
    file->handle = (intptr_t)handle;
    if (size) *size = (uint64_t)bytes.QuadPart;
    return AQ_OK;
}

AQ_LIB aq_status aq_file_create(aq_file *file, const char *path, aq_error *err) {
    HANDLE handle = aq_open_handle(path, GENERIC_READ | GENERIC_WRITE, FILE_SHARE_READ, CREATE_NEW,
                                   FILE_ATTRIBUTE_NORMAL);
    file->handle = (intptr_t)handle;
    file->path = path;
    return handle == INVALID_HANDLE_VALUE ? aq_system_fail(path, "create", err) : AQ_OK;
}

static OVERLAPPED aq_overlapped(uint64_t offset) {
    OVERLAPPED at;
    memset(&at, 0, sizeof(at));
    at.Offset = (DWORD)(offset & 0xFFFFFFFFu);
    at.OffsetHigh = (DWORD)(offset >> 32);
    return at;
}

AQ_LIB aq_status aq_file_read(const aq_file *file, uint64_t offset, void *data, size_t size,
                              aq_error *err) {
    char *to = (char *)data;
    size_t done = 0;
    while (done < size) {
        OVERLAPPED at = aq_overlapped(offset + done);
        size_t part = size - done < AQ_IO_LARGEST ? size - done : AQ_IO_LARGEST;
        DWORD got = 0;
        if (!ReadFile(aq_handle(file), to + done, (DWORD)part, &got, &at) &&
            GetLastError() != ERROR_HANDLE_EOF)
            return aq_system_fail(file->path, "read", err);
        if (got == 0)
            return aq_fail_tensor(err, AQ_ERR_CORRUPT, "", offset + done,
                                  "%s: ends at byte %llu where %zu more are expected; it is "
                                  "truncated, or was changed meanwhile", file->path,
                                  (unsigned long long)(offset + done), size - done);
        done += got;
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_file_write(const aq_file *file, uint64_t offset, const void *data, size_t size,
                               aq_error *err) {
    const char *from = (const char *)data;
    size_t done = 0;
    while (done < size) {
        OVERLAPPED at = aq_overlapped(offset + done);
        size_t part = size - done < AQ_IO_LARGEST ? size - done : AQ_IO_LARGEST;
        DWORD put = 0;
        if (!WriteFile(aq_handle(file), from + done, (DWORD)part, &put, &at))
            return aq_system_fail(file->path, "write", err);
        if (put == 0) {
            SetLastError(ERROR_DISK_FULL);
            return aq_system_fail(file->path, "write", err);
        }
        done += put;
    }
    return AQ_OK;
}

AQ_LIB aq_status aq_file_truncate(const aq_file *file, uint64_t size, aq_error *err) {
    FILE_END_OF_FILE_INFO end;
    end.EndOfFile.QuadPart = (LONGLONG)size;
    if (SetFileInformationByHandle(aq_handle(file), FileEndOfFileInfo, &end, sizeof(end)))
        return AQ_OK;
    return aq_system_fail(file->path, "resize", err);
}

AQ_LIB void aq_file_begin_sync(const aq_file *file, uint64_t offset, uint64_t size) {
    (void)file;
    (void)offset;
    (void)size;
}

AQ_LIB aq_status aq_file_sync(const aq_file *file, aq_error *err) {
    return FlushFileBuffers(aq_handle(file)) ? AQ_OK : aq_system_fail(file->path, "sync", err);
}

AQ_LIB aq_status aq_file_close(aq_file *file, aq_error *err) {
    if (file->handle == -1) return AQ_OK;
    BOOL closed = CloseHandle(aq_handle(file));
    file->handle = -1;
    return closed ? AQ_OK : aq_system_fail(file->path, "close", err);
}

/* A view keeps its mapping and its file open by itself. */
AQ_LIB aq_status aq_map_file(aq_map *map, const char *path, aq_error *err) {
    aq_file file = AQ_FILE_CLOSED;
    uint64_t size;
    map->data = NULL;
    map->size = 0;
    map->handle = -1;
    aq_status status = aq_file_open(&file, path, &size, err);
    if (status != AQ_OK) return status;
    if (size > SIZE_MAX / 2) {
        status = aq_fail(err, AQ_ERR_OUT_OF_MEMORY, "%s: %llu bytes do not fit the address space",
                         path, (unsigned long long)size);
    } else if (size) {
        HANDLE mapping = CreateFileMappingW(aq_handle(&file), NULL, PAGE_READONLY, 0, 0, NULL);
        if (mapping) map->data = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
        if (!map->data) status = aq_system_fail(path, "map", err);
        if (mapping) CloseHandle(mapping);
    }
    (void)aq_file_close(&file, NULL);
    if (status == AQ_OK) map->size = size;
    return status;
}

AQ_LIB void aq_unmap_file(aq_map *map) {
    if (map->data) (void)UnmapViewOfFile(map->data);
    map->data = NULL;
    map->size = 0;
}

AQ_LIB bool aq_file_reflink(const aq_file *to, const aq_file *from) {
    (void)to;
    (void)from;
    return false;
}

/* ---- paths and folders */

AQ_LIB bool aq_is_separator(char c) { return c == '/' || c == '\\'; }
AQ_LIB char aq_separator(void) { return '\\'; }

AQ_LIB aq_path_kind aq_path_stat(const char *path, uint64_t *size) {
    BY_HANDLE_FILE_INFORMATION about;
    aq_path_kind kind = AQ_PATH_OTHER;
    *size = 0;
    HANDLE handle = aq_open_handle(path, 0, AQ_SHARE_ALL, OPEN_EXISTING,
                                   FILE_FLAG_BACKUP_SEMANTICS);
    if (handle == INVALID_HANDLE_VALUE) {
        DWORD code = GetLastError();
        bool held = code == ERROR_SHARING_VIOLATION || code == ERROR_ACCESS_DENIED;
        return held ? AQ_PATH_OTHER : AQ_PATH_NONE;
    }
    if (GetFileType(handle) == FILE_TYPE_DISK && GetFileInformationByHandle(handle, &about)) {
        kind = about.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? AQ_PATH_FOLDER : AQ_PATH_FILE;
        if (kind == AQ_PATH_FILE) *size = (uint64_t)about.nFileSizeHigh << 32 | about.nFileSizeLow;
    }
    CloseHandle(handle);
    return kind;
}

/* Junctions count as links; other reparse points (files of cloud drives) do not. */
AQ_LIB bool aq_path_is_link(const char *path) {
    aq_wide_path wide;
    WIN32_FIND_DATAW found;
    if (!aq_to_wide(path, &wide)) return false;
    HANDLE search = FindFirstFileW(wide.text, &found);
    if (search == INVALID_HANDLE_VALUE) return false;
    FindClose(search);
    return (found.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT) &&
           (found.dwReserved0 == IO_REPARSE_TAG_SYMLINK ||
            found.dwReserved0 == IO_REPARSE_TAG_MOUNT_POINT);
}

AQ_LIB uint64_t aq_path_modified(const char *path) {
    aq_wide_path wide;
    WIN32_FILE_ATTRIBUTE_DATA about;
    if (!aq_to_wide(path, &wide) || !GetFileAttributesExW(wide.text, GetFileExInfoStandard, &about))
        return 0;
    return (uint64_t)about.ftLastWriteTime.dwHighDateTime << 32 |
           about.ftLastWriteTime.dwLowDateTime;
}

AQ_LIB aq_status aq_scan_folder(const char *path, aq_visit_fn visit, void *user, aq_error *err) {
    aq_wide_path wide;
    WIN32_FIND_DATAW found;
    char name[4 * MAX_PATH];
    aq_status status = AQ_OK;
    if (!aq_to_wide(path, &wide)) return aq_system_fail(path, "list", err);
    size_t length = (size_t)lstrlenW(wide.text);
    memcpy(wide.text + length, L"\\*", 3 * sizeof(WCHAR));
    HANDLE search = FindFirstFileW(wide.text, &found);
    if (search == INVALID_HANDLE_VALUE) return aq_system_fail(path, "list", err);
    do {
        if (!WideCharToMultiByte(CP_UTF8, 0, found.cFileName, -1, name, (int)sizeof(name), NULL,
                                 NULL)) {
            status = aq_system_fail(path, "list", err);
            break;
        }
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        status = visit(user, name, err);
    } while (status == AQ_OK && FindNextFileW(search, &found));
    if (status == AQ_OK && GetLastError() != ERROR_NO_MORE_FILES)
        status = aq_system_fail(path, "list", err);
    FindClose(search);
    return status;
}

AQ_LIB aq_status aq_remove_one(const char *path, bool folder, aq_error *err) {
    aq_wide_path wide;
    if (!aq_to_wide(path, &wide)) return aq_system_fail(path, "remove", err);
    DWORD attributes = GetFileAttributesW(wide.text);
    if (attributes != INVALID_FILE_ATTRIBUTES) {
        if (attributes & FILE_ATTRIBUTE_DIRECTORY) folder = true; /* a link to one */
        if (attributes & FILE_ATTRIBUTE_READONLY)
            (void)SetFileAttributesW(wide.text, FILE_ATTRIBUTE_NORMAL);
    }
    if (folder ? RemoveDirectoryW(wide.text) : DeleteFileW(wide.text)) return AQ_OK;
    DWORD code = GetLastError();
    if (code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND) return AQ_OK;
    return aq_system_fail(path, "remove", err);
}

AQ_LIB aq_status aq_real_path(aq_arena *arena, const char *path, char **out, aq_error *err) {
    aq_wide_path real;
    WCHAR *start = real.text;
    *out = NULL;
    HANDLE handle = aq_open_handle(path, 0, AQ_SHARE_ALL, OPEN_EXISTING,
                                   FILE_FLAG_BACKUP_SEMANTICS);
    if (handle == INVALID_HANDLE_VALUE) {
        DWORD code = GetLastError();
        if (code == ERROR_FILE_NOT_FOUND || code == ERROR_PATH_NOT_FOUND) return AQ_OK;
        return aq_system_fail(path, "resolve", err);
    }
    DWORD length = GetFinalPathNameByHandleW(handle, real.text, AQ_WIDE_SIZE, 0);
    CloseHandle(handle);
    if (!length || length >= AQ_WIDE_SIZE) return aq_system_fail(path, "resolve", err);
    if (length > 8 && memcmp(start, L"\\\\?\\UNC\\", 8 * sizeof(WCHAR)) == 0) {
        start += 6;
        start[0] = L'\\';
    } else if (length > 4 && memcmp(start, L"\\\\?\\", 4 * sizeof(WCHAR)) == 0) {
        start += 4;
    }
    *out = aq_narrow(arena, start);
    return *out ? AQ_OK : aq_fail_memory(err, length);
}

AQ_LIB aq_status aq_make_folder(const char *path, aq_error *err) {
    aq_wide_path wide;
    if (aq_to_wide(path, &wide) && CreateDirectoryW(wide.text, NULL)) return AQ_OK;
    return aq_system_fail(path, "create the folder", err);
}

AQ_LIB aq_status aq_sync_folder(const char *path, aq_error *err) {
    (void)path; /* the file system's journal keeps names */
    (void)err;
    return AQ_OK;
}

AQ_LIB aq_status aq_rename(const char *from, const char *to, aq_rename_mode mode, aq_error *err) {
    aq_wide_path source, target;
    DWORD flags = MOVEFILE_WRITE_THROUGH;
    if (mode == AQ_RENAME_EXCHANGE)
        return aq_fail(err, AQ_ERR_UNSUPPORTED, "%s: this system cannot exchange it with %s in one "
                       "step", to, from);
    if (mode == AQ_RENAME_REPLACE) flags |= MOVEFILE_REPLACE_EXISTING;
    if (!aq_to_wide(from, &source)) return aq_system_fail(from, "rename", err);
    if (aq_to_wide(to, &target) && MoveFileExW(source.text, target.text, flags)) return AQ_OK;
    /* for a folder in the way the system may say "access denied" */
    if (mode == AQ_RENAME_NOREPLACE) {
        DWORD code = GetLastError();
        if (GetFileAttributesW(target.text) != INVALID_FILE_ATTRIBUTES)
            SetLastError(ERROR_ALREADY_EXISTS);
        else
            SetLastError(code);
    }
    return aq_system_fail(to, "rename to it", err);
}

/* ---- locks: a file that nobody else may open, which the system removes with its last handle */

AQ_LIB aq_status aq_lock_create(aq_file *lock, const char *path, aq_error *err) {
    HANDLE handle = aq_open_handle(path, GENERIC_READ | GENERIC_WRITE | DELETE, 0, CREATE_NEW,
                                   FILE_ATTRIBUTE_NORMAL | FILE_FLAG_DELETE_ON_CLOSE);
    lock->handle = (intptr_t)handle;
    lock->path = path;
    return handle == INVALID_HANDLE_VALUE ? aq_system_fail(path, "create", err) : AQ_OK;
}

AQ_LIB bool aq_lock_is_stale(const char *path) {
    HANDLE handle = aq_open_handle(path, GENERIC_READ | GENERIC_WRITE, 0, OPEN_EXISTING,
                                   FILE_ATTRIBUTE_NORMAL);
    if (handle == INVALID_HANDLE_VALUE) return false;
    CloseHandle(handle);
    return true;
}

AQ_LIB void aq_lock_release(aq_file *lock) { (void)aq_file_close(lock, NULL); }

/* ---- time and process */

AQ_LIB double aq_clock_seconds(void) {
    LARGE_INTEGER now, frequency;
    if (!QueryPerformanceCounter(&now) || !QueryPerformanceFrequency(&frequency)) return 0.0;
    return (double)now.QuadPart / (double)frequency.QuadPart;
}

AQ_LIB uint64_t aq_process_id(void) { return GetCurrentProcessId(); }

#undef AQ_WIDE_SIZE
#undef AQ_IO_LARGEST
#undef AQ_SHARE_ALL
#endif /* !ARROWQUANT_NO_STDIO && _WIN32 */
