/* The least work that delivers one frame to n sockets: what every server is compared with. Compiled by native.py. */
#define _GNU_SOURCE
#include <sys/socket.h>

/* Returns the number of sockets that took the whole frame. */
int floor_send(const int *fds, int n, const void *frame, int size) {
    int whole = 0;
    for (int i = 0; i < n; i++) whole += send(fds[i], frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) == size;
    return whole;
}
