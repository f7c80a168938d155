/* A cut of power, for one process: loaded by LD_PRELOAD, it remembers what files below INGESTD_POWER_ROOT held when they
 * were last synced. When the file INGESTD_POWER_CUT appears, every write since is undone, so is every rename and link
 * whose directory was not synced since, and the process is killed. That is the worst that a disk may do that keeps its
 * word: nothing that was not synced is there, and what was deleted is gone.
 *
 * Not undone: new directories, and truncation by open(2). Written through shared memory: not seen (SQLite's -shm).
 * What a renamed or linked name stood for before is kept in INGESTD_POWER_KEEP, on the same file system.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct inode {
    dev_t device;
    ino_t number;
    int fd; /* never closed: closing one drops the process's locks on the file */
    struct inode *next;
};

enum kind { WRITTEN, NAMED };

struct undo {
    enum kind kind;
    unsigned long when;
    /* WRITTEN: the file, its length before, and the bytes that were overwritten. NAMED: the directory. */
    dev_t device;
    ino_t number;
    int fd;
    off_t length, offset;
    size_t size;
    char *bytes;
    /* NAMED: `to` was made; it stood at `from` (empty for a link), and `kept` is what it replaced (or empty). */
    char from[PATH_MAX], to[PATH_MAX], kept[PATH_MAX];
    struct undo *older;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct inode *inodes;
static struct undo *newest;
static unsigned long now, last_sync;
static char root[PATH_MAX], cut[PATH_MAX], keep[PATH_MAX];

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void give_up(const char *what) {
    fprintf(stderr, "power.c: %s: %s\n", what, strerror(errno));
    abort();
}

static int below_root(const char *path) {
    size_t length = strlen(root);
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

/* The file behind `fd`, when it is a regular one below the root. */
static struct inode *tracked(int fd, struct stat *stat) {
    char link[64], path[PATH_MAX];
    if (!*root || fstat(fd, stat) || !S_ISREG(stat->st_mode)) return NULL;
    for (struct inode *each = inodes; each; each = each->next)
        if (each->device == stat->st_dev && each->number == stat->st_ino) return each;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    if (!below_root(path)) return NULL;
    struct inode *inode = malloc(sizeof *inode);
    if (!inode) give_up("no memory");
    *inode = (struct inode){stat->st_dev, stat->st_ino, open(link, O_RDWR | O_CLOEXEC), inodes};
    if (inode->fd < 0) give_up(path);
    return inodes = inode;
}

static void push(struct undo undo) {
    struct undo *entry = malloc(sizeof *entry);
    if (!entry) give_up("no memory");
    *entry = undo;
    entry->when = ++now;
    entry->older = newest;
    newest = entry;
}

/* Before `size` bytes at `offset` change (all from there on: SIZE_MAX). The lock is held. */
static void about_to_change(int fd, off_t offset, size_t size) {
    struct stat stat;
    struct inode *inode = tracked(fd, &stat);
    if (!inode) return;
    if (offset < 0) offset = stat.st_size;
    size_t held = offset < stat.st_size ? (size_t)(stat.st_size - offset) : 0;
    if (held > size) held = size;
    if (!held)
        /* An append after another change: undoing that one cuts it off as well. */
        for (struct undo *each = newest; each; each = each->older)
            if (each->kind == WRITTEN && each->device == inode->device && each->number == inode->number) {
                if (each->when > last_sync && each->length <= stat.st_size) return;
                break;
            }
    struct undo undo = {.kind = WRITTEN, .device = inode->device, .number = inode->number, .fd = inode->fd,
                        .length = stat.st_size, .offset = offset, .size = held};
    if (held) {
        undo.bytes = malloc(held);
        if (!undo.bytes || pread(inode->fd, undo.bytes, held, offset) != (ssize_t)held) give_up("cannot read what was");
    }
    push(undo);
}

/* `upto`: what came later is not synced by this. */
static void synced(enum kind kind, dev_t device, ino_t number, unsigned long upto) {
    for (struct undo **at = &newest; *at;) {
        struct undo *each = *at;
        if (each->kind == kind && each->device == device && each->number == number && each->when <= upto) {
            *at = each->older;
            if (*each->kept) unlink(each->kept);
            free(each->bytes);
            free(each);
        } else {
            at = &each->older;
        }
    }
}

static void undo_all(void) {
    for (struct undo *each = newest; each; each = each->older) {
        if (each->kind == WRITTEN) {
            if (each->size) syscall(SYS_pwrite64, each->fd, each->bytes, each->size, each->offset);
            syscall(SYS_ftruncate, each->fd, each->length);
            continue;
        }
        if (*each->from)
            syscall(SYS_rename, each->to, each->from);
        else
            syscall(SYS_unlink, each->to);
        if (*each->kept) syscall(SYS_rename, each->kept, each->to);
    }
}

/* A thread that reads a mapped file which became shorter has lost its power, too. */
static void hang(int unused) {
    (void)unused;
    for (;;) pause();
}

static void *wait_for_cut(void *unused) {
    (void)unused;
    while (syscall(SYS_access, cut, F_OK)) usleep(2000);
    pthread_mutex_lock(&lock);
    signal(SIGBUS, hang);
    undo_all();
    kill(getpid(), SIGKILL);
    return NULL;
}

__attribute__((constructor)) static void begin(void) {
    const char *given_root = getenv("INGESTD_POWER_ROOT"), *given_cut = getenv("INGESTD_POWER_CUT");
    const char *given_keep = getenv("INGESTD_POWER_KEEP");
    if (!given_root || !given_cut || !given_keep) return;
    snprintf(cut, sizeof cut, "%s", given_cut);
    snprintf(keep, sizeof keep, "%s", given_keep);
    snprintf(root, sizeof root, "%s", given_root);
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for_cut, NULL)) give_up("no thread");
}

static off_t position(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && flags & O_APPEND ? -1 : lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(write);
    struct stat stat;
    if (!*root || fstat(fd, &stat) || !S_ISREG(stat.st_mode)) return real(fd, bytes, size);
    pthread_mutex_lock(&lock);
    about_to_change(fd, position(fd), size);
    ssize_t done = real(fd, bytes, size);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    struct stat stat;
    if (!*root || fstat(fd, &stat) || !S_ISREG(stat.st_mode)) return real(fd, parts, count);
    size_t size = 0;
    for (int part = 0; part < count; part++) size += parts[part].iov_len;
    pthread_mutex_lock(&lock);
    about_to_change(fd, position(fd), size);
    ssize_t done = real(fd, parts, count);
    pthread_mutex_unlock(&lock);
    return done;
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *bytes, size_t size, off_t offset) { \
        REAL(name); \
        pthread_mutex_lock(&lock); \
        about_to_change(fd, offset, size); \
        ssize_t done = real(fd, bytes, size, offset); \
        pthread_mutex_unlock(&lock); \
        return done; \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define FTRUNCATE(name) \
    int name(int fd, off_t length) { \
        REAL(name); \
        pthread_mutex_lock(&lock); \
        about_to_change(fd, length, SIZE_MAX); \
        int done = real(fd, length); \
        pthread_mutex_unlock(&lock); \
        return done; \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        struct stat stat; \
        if (!*root || fstat(fd, &stat)) return real(fd); \
        pthread_mutex_lock(&lock); \
        unsigned long upto = last_sync = ++now; \
        pthread_mutex_unlock(&lock); \
        int done = real(fd); \
        if (done) return done; \
        pthread_mutex_lock(&lock); \
        synced(S_ISDIR(stat.st_mode) ? NAMED : WRITTEN, stat.st_dev, stat.st_ino, upto); \
        pthread_mutex_unlock(&lock); \
        return 0; \
    }
SYNC(fsync)
SYNC(fdatasync)

/* Before `to` becomes another name; `from` is empty for a link. The lock is held. */
static struct undo *about_to_name(const char *from, const char *to) {
    char folder[PATH_MAX];
    struct stat stat;
    if (!below_root(to)) return NULL;
    snprintf(folder, sizeof folder, "%s", to);
    *strrchr(folder, '/') = 0;
    if (lstat(folder, &stat)) return NULL;
    struct undo undo = {.kind = NAMED, .device = stat.st_dev, .number = stat.st_ino};
    snprintf(undo.from, sizeof undo.from, "%s", from);
    snprintf(undo.to, sizeof undo.to, "%s", to);
    if (*from) {
        snprintf(undo.kept, sizeof undo.kept, "%s/%lu", keep, now + 1);
        unlink(undo.kept);
        if (syscall(SYS_link, to, undo.kept)) *undo.kept = 0;
    }
    push(undo);
    return newest;
}

static void forget(struct undo *entry, int done) {
    if (!entry || !done) return;
    newest = entry->older;
    if (*entry->kept) unlink(entry->kept);
    free(entry);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    pthread_mutex_lock(&lock);
    struct undo *entry = about_to_name(from, to);
    int done = real(from, to);
    int error = errno;
    forget(entry, done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int link(const char *from, const char *to) {
    REAL(link);
    pthread_mutex_lock(&lock);
    struct undo *entry = about_to_name("", to);
    int done = real(from, to);
    int error = errno;
    forget(entry, done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(linkat);
    pthread_mutex_lock(&lock);
    struct undo *entry = to_folder == AT_FDCWD ? about_to_name("", to) : NULL;
    int done = real(from_folder, from, to_folder, to, flags);
    int error = errno;
    forget(entry, done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}
