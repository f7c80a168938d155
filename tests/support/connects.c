// Counts the connections that a process begins to one port, for LD_PRELOAD: a byte in CONNECTS_FILE for each attempt at
// CONNECTS_PORT of IPv4.
//
// Built by the test: cc -shared -fPIC -o connects.so connects.c -ldl
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int file = -1, port;
static int (*real)(int, const struct sockaddr *, socklen_t);

__attribute__((constructor)) static void begin(void) {
  real = dlsym(RTLD_NEXT, "connect");
  const char *path = getenv("CONNECTS_FILE"), *wanted = getenv("CONNECTS_PORT");
  if (path && wanted) {
    port = atoi(wanted);
    file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  }
}

int connect(int socket, const struct sockaddr *address, socklen_t size) {
  if (file >= 0 && address->sa_family == AF_INET && ntohs(((const struct sockaddr_in *)address)->sin_port) == port) {
    int before = errno;
    if (write(file, "c", 1) != 1)
      abort();
    errno = before;
  }
  return real(socket, address, size);
}
