/* What the three programs share: the wire protocol of the benchmark, and sockets. */
#ifndef BENCH_H
#define BENCH_H

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* A tunnel starts with one frame from the client: a TLS ClientHello that names the origin, so that
 * a proxy which checks SNI can do so. Its random field carries what the client wants: one letter
 * and a number of bytes.
 *   E    send the frame back, and each further one       (a ping-pong)
 *   D n  send n bytes                                    (a download)
 *   U n  send the frame back, as in TLS nobody sends anything before the server has answered;
 *        take n bytes, then send the frame back again    (an upload)
 * A connection that starts with anything else gets HTTP/1.1: a tiny answer to each request. */
enum { FRAME = 517, TLS_HANDSHAKE = 0x16, COMMAND = 11, LENGTH = 12 };

/* One line for what must not happen in a benchmark: it makes the run worthless. */
#define die(...) (fprintf(stderr, __VA_ARGS__), fprintf(stderr, "\n"), exit(1))

static inline struct sockaddr_in loopback(unsigned last_octet, unsigned port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(0x7f000000u + last_octet);
    return address;
}

static inline int tcp_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        die("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* What it accepts inherits TCP_NODELAY. */
static inline int listen_on(unsigned port)
{
    int fd = tcp_socket(), on = 1;
    struct sockaddr_in address = loopback(1, port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096))
        die("port %u: %s", port, strerror(errno));
    return fd;
}

static inline void watch(int epoll, int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl: %s", strerror(errno));
}

/* Nothing outlives the harness, however that ends. */
static inline void die_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

#endif
