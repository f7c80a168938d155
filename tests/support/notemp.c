// A root that is read-only and has no folder for temporary files, for LD_PRELOAD: nowhere but below $NOTEMP_BUT may a file
// be written, as far as access(2) tells.
//
// Built by the test: cc -shared -fPIC -o notemp.so notemp.c -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int access(const char *path, int mode) {
  const char *but = getenv("NOTEMP_BUT");
  if ((mode & W_OK) && !(but && !strncmp(path, but, strlen(but)))) {
    errno = EROFS;
    return -1;
  }
  return ((__typeof__(&access))dlsym(RTLD_NEXT, "access"))(path, mode);
}
