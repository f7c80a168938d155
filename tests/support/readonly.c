// A folder on a file system that became read-only under a running process, for LD_PRELOAD.
//
// The kernel does that by itself after errors (ext4's errors=remount-ro); asked with `mount -o remount,ro` it refuses
// while a file is open for writing. While the file $READONLY_WHILE is there, each call that would change something in
// the folder $READONLY_FOLDER fails with EROFS, files that are open already included.
//
// Built by the test: cc -shared -fPIC -o readonly.so readonly.c -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int inside(const char *path) {
  const char *folder = getenv("READONLY_FOLDER");
  return folder && path && !strncmp(path, folder, strlen(folder));
}

static int is_readonly(const char *path) {
  const char *switch_file = getenv("READONLY_WHILE");
  int before = errno, on = inside(path) && switch_file && !access(switch_file, F_OK);
  errno = before;
  return on;
}

static int is_readonly_file(int file) {
  char link[32], path[4096];
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = before;
  if (length <= 0) return 0;
  path[length] = 0;
  return is_readonly(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REFUSE(condition) \
  do { \
    if (condition) { \
      errno = EROFS; \
      return -1; \
    } \
  } while (0)
#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(more, mode_t) : 0; \
    va_end(more); \
    REFUSE(CHANGES(flags) && is_readonly(path)); \
    return REAL(name)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(more, mode_t) : 0; \
    va_end(more); \
    REFUSE(CHANGES(flags) && is_readonly(path)); \
    return REAL(name)(at, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define ON_FILE(result, name, parameters, arguments) \
  result name parameters { \
    REFUSE(is_readonly_file(file)); \
    return REAL(name) arguments; \
  }
ON_FILE(ssize_t, write, (int file, const void *from, size_t size), (file, from, size))
ON_FILE(ssize_t, pwrite, (int file, const void *from, size_t size, off_t at), (file, from, size, at))
ON_FILE(ssize_t, pwrite64, (int file, const void *from, size_t size, off64_t at), (file, from, size, at))
ON_FILE(ssize_t, writev, (int file, const struct iovec *from, int count), (file, from, count))
ON_FILE(int, ftruncate, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, (int file, off64_t size), (file, size))

#define ON_PATH(name, parameters, changed, arguments) \
  int name parameters { \
    REFUSE(is_readonly(changed)); \
    return REAL(name) arguments; \
  }
ON_PATH(rename, (const char *from, const char *to), to, (from, to))
ON_PATH(link, (const char *from, const char *to), to, (from, to))
ON_PATH(linkat, (int a, const char *from, int b, const char *to, int flags), to, (a, from, b, to, flags))
ON_PATH(unlink, (const char *path), path, (path))
ON_PATH(mkdir, (const char *path, mode_t mode), path, (path, mode))
ON_PATH(rmdir, (const char *path), path, (path))
