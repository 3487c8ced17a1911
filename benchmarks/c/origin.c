/* The origin server of the benchmark: echo, source, sink and tiny HTTP answers on one port.
 * bench.h has the protocol.
 *
 *   origin PORT       runs until its standard input ends
 */
#define _GNU_SOURCE
#include "bench.h"

enum { MAX_FD = 1 << 16, BATCH = 256, CHUNK = 256 * 1024 };

static const char ANSWER[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";

/* Indexed by descriptor; the kernel gives memory to the slots in use alone. */
static struct conn {
    enum { NEW, ECHOING, SENDING, TAKING, ANSWERING } kind;
    unsigned got;  /* bytes of `head` that hold an unfinished frame or request */
    uint64_t left; /* bytes still to send or to take */
    char head[1024];
} conns[MAX_FD];

static char chunk[CHUNK];

/* What each step of a connection says: wait for the next edge, go on, or end it. */
enum verdict { WAIT, GO_ON, END };

/* Answers are small and the socket is empty, so a short write can only be a broken connection. */
static enum verdict reply(int fd, const char *what, size_t size)
{
    return send(fd, what, size, MSG_NOSIGNAL) == (ssize_t)size ? GO_ON : END;
}

static enum verdict fill(int fd, struct conn *c, size_t size)
{
    ssize_t n = recv(fd, c->head + c->got, size - c->got, 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? WAIT : END;
    c->got += (unsigned)n;
    return GO_ON;
}

static enum verdict begin(int fd, struct conn *c)
{
    enum verdict verdict = fill(fd, c, FRAME);
    if (verdict != GO_ON)
        return verdict;
    if (c->head[0] != TLS_HANDSHAKE) {
        c->kind = ANSWERING;
        return GO_ON;
    }
    if (c->got < FRAME)
        return GO_ON;
    memcpy(&c->left, c->head + LENGTH, sizeof c->left);
    c->left = be64toh(c->left);
    c->got = 0;
    switch (c->head[COMMAND]) {
    case 'E': c->kind = ECHOING; return reply(fd, c->head, FRAME);
    case 'D': c->kind = SENDING; return GO_ON;
    case 'U': c->kind = TAKING; return reply(fd, c->head, FRAME);
    default: return END;
    }
}

static enum verdict echo(int fd, struct conn *c)
{
    enum verdict verdict = fill(fd, c, FRAME);
    if (verdict != GO_ON || c->got < FRAME)
        return verdict;
    c->got = 0;
    return reply(fd, c->head, FRAME);
}

static enum verdict source(int fd, struct conn *c)
{
    if (!c->left) { /* all is sent: from here on only the end can come */
        c->kind = ECHOING;
        return GO_ON;
    }
    ssize_t n = send(fd, chunk, c->left < CHUNK ? c->left : CHUNK, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN ? WAIT : END;
    c->left -= (uint64_t)n;
    return GO_ON;
}

static enum verdict sink(int fd, struct conn *c)
{
    /* MSG_TRUNC drops the bytes in the kernel: the copy would only slow the load down. */
    ssize_t n = recv(fd, chunk, c->left < CHUNK ? c->left : CHUNK, MSG_TRUNC);
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? WAIT : END;
    c->left -= (uint64_t)n;
    if (c->left)
        return GO_ON;
    c->kind = ECHOING;
    return reply(fd, c->head, FRAME);
}

static enum verdict answer(int fd, struct conn *c)
{
    if (c->got >= 4 && !memcmp(c->head + c->got - 4, "\r\n\r\n", 4)) {
        c->got = 0;
        return reply(fd, ANSWER, sizeof ANSWER - 1);
    }
    return c->got < sizeof c->head ? fill(fd, c, sizeof c->head) : END;
}

static enum verdict (*const steps[])(int, struct conn *) = {
    [NEW] = begin, [ECHOING] = echo, [SENDING] = source, [TAKING] = sink, [ANSWERING] = answer};

static void serve(int fd)
{
    enum verdict verdict;
    do
        verdict = steps[conns[fd].kind](fd, &conns[fd]);
    while (verdict == GO_ON);
    if (verdict == END)
        close(fd);
}

static void accept_all(int epoll, int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FD)
            die("origin: more than %d descriptors", MAX_FD);
        conns[fd].kind = NEW;
        conns[fd].got = 0;
        watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, (void *)(intptr_t)fd);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("origin: accept: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    if (argc != 2)
        die("usage: origin PORT");
    die_with_parent();
    struct epoll_event events[BATCH];
    int epoll = epoll_create1(EPOLL_CLOEXEC), listener = listen_on((unsigned)atoi(argv[1]));
    watch(epoll, listener, EPOLLIN, (void *)(intptr_t)listener);
    watch(epoll, STDIN_FILENO, EPOLLIN, (void *)(intptr_t)STDIN_FILENO);
    for (;;) {
        int n = epoll_wait(epoll, events, BATCH, -1);
        for (int i = 0; i < n; i++) {
            int fd = (int)(intptr_t)events[i].data.ptr;
            if (fd == STDIN_FILENO)
                return 0;
            /* A new connection may get a descriptor that this batch still names: no harm. */
            if (fd == listener)
                accept_all(epoll, listener);
            else
                serve(fd);
        }
    }
}
