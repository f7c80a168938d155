// A file system without hard links, for LD_PRELOAD: exFAT, SMB and some of FUSE answer link() with EPERM.
//
// Built by the test: cc -shared -fPIC -o nolinks.so nolinks.c
#include <errno.h>

int link(const char *from, const char *to) {
  (void)from, (void)to;
  errno = EPERM;
  return -1;
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
  (void)from_dir, (void)to_dir, (void)flags;
  return link(from, to);
}
