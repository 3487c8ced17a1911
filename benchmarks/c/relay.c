/* The floor: what a tunnel costs when nobody does more than the kernel makes them do.
 *
 *   relay PORT HOST ORIGIN_PORT LOG   allows CONNECT HOST:ORIGIN_PORT, which it dials at 127.0.0.1
 *
 * One thread, one edge-triggered epoll set, small transfers by read and write, large ones by
 * splice, half-close, a fixed 403 for every other request, a log line for each, written once per
 * batch of events. It has no timeouts, and wants a request's head in one piece: it is here to be
 * measured against, not to be used.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <time.h>

#include "bench.h"

enum { BATCH = 256, CHUNKS = 8, PIPES = 64 };
enum { SMALL = 64 * 1024, SPLICE_FROM = 128 * 1024, PIPE = 256 * 1024 };

static const uint32_t EVENTS = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;

struct pipe {
    int out, in;
};

/* One end of a tunnel, and the bytes that flow from it to the other end. */
struct end {
    int fd;
    unsigned waiting; /* bytes in `pipe` that the other end did not take yet */
    struct pipe *pipe;
    uint64_t moved;
    bool ended, again; /* its sender has finished; it stands in `again` for another turn */
};

struct tunnel {
    struct end ends[2]; /* client, origin */
    enum { CONNECTING, OPEN, DEAD } state;
    struct tunnel *next; /* in the list of the dead, or of the free */
};

/* One end of a tunnel in one word: the lowest bit of the pointer says which. */
static uintptr_t handle(struct tunnel *t, int which)
{
    return (uintptr_t)t | (uintptr_t)which;
}

static struct tunnel *tunnel_of(uintptr_t handle)
{
    return (struct tunnel *)(handle & ~(uintptr_t)1);
}

static int epoll, listener, log_fd;
static char host_port[280], buffer[SMALL], lines[64 * 1024];
static size_t lines_size;
static struct sockaddr_in origin;
static struct tunnel *dead, *unused;
static struct pipe *spare[PIPES];
static int spares;
static uintptr_t *again; /* those that had more than their turn's worth, by handle */
static int again_size, again_room;

static const char ESTABLISHED[] = "HTTP/1.1 200 Connection established\r\n\r\n";
static const char DENIED[] =
    "HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\nConnection: close\r\n\r\ndenied\n";

static void flush_log(void)
{
    if (lines_size && write(log_fd, lines, lines_size) != (ssize_t)lines_size)
        die("relay: log: %s", strerror(errno));
    lines_size = 0;
}

static void __attribute__((format(printf, 1, 2))) record(const char *format, ...)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (lines_size > sizeof lines - 1024)
        flush_log();
    long ms = t.tv_nsec / 1000000;
    lines_size += (size_t)sprintf(lines + lines_size, "{\"timestamp\":%ld.%03ld,", t.tv_sec, ms);
    va_list values;
    va_start(values, format);
    lines_size += (size_t)vsnprintf(lines + lines_size, 512, format, values);
    va_end(values);
}

static struct pipe *borrow_pipe(void)
{
    if (spares)
        return spare[--spares];
    int fds[2];
    if (pipe2(fds, O_NONBLOCK | O_CLOEXEC))
        die("relay: pipe: %s", strerror(errno));
    fcntl(fds[1], F_SETPIPE_SZ, PIPE); /* may be refused; it is then slower, and still right */
    struct pipe *pipe = malloc(sizeof *pipe);
    *pipe = (struct pipe){fds[0], fds[1]};
    return pipe;
}

static void return_pipe(struct end *end)
{
    struct pipe *pipe = end->pipe;
    end->pipe = NULL;
    if (pipe && !end->waiting && spares < PIPES) {
        spare[spares++] = pipe;
    } else if (pipe) {
        close(pipe->out);
        close(pipe->in);
        free(pipe);
    }
}

/* Closed at the end of the batch: no event still to come may meet a descriptor's next life. */
static void end_tunnel(struct tunnel *t)
{
    if (t->state == DEAD)
        return;
    t->state = DEAD;
    t->next = dead;
    dead = t;
    unsigned long sent = t->ends[0].moved, received = t->ends[1].moved;
    record("\"event\":\"CLOSED\",\"host\":\"%s\",\"status\":200,\"sent\":%lu,\"received\":%lu}\n",
        host_port, sent, received);
}

static void bury(void)
{
    while (dead) {
        struct tunnel *t = dead;
        dead = t->next;
        for (int i = 0; i < 2; i++) {
            close(t->ends[i].fd);
            return_pipe(&t->ends[i]);
        }
        t->next = unused;
        unused = t;
    }
}

/* What a transfer came to: bytes, nothing before the next edge, the sender's end, an error. */
enum outcome { MOVED, BLOCKED, FINISHED, BROKEN };

static enum outcome outcome_of(ssize_t n)
{
    return n > 0 ? MOVED : n == 0 ? FINISHED : errno == EAGAIN ? BLOCKED : BROKEN;
}

static enum outcome drain(struct end *from, struct end *to)
{
    ssize_t n = splice(from->pipe->out, NULL, to->fd, NULL, from->waiting, SPLICE_F_NONBLOCK);
    if (n > 0)
        from->waiting -= (unsigned)n;
    return outcome_of(n);
}

static enum outcome by_splice(struct end *from)
{
    if (!from->pipe)
        from->pipe = borrow_pipe();
    ssize_t n = splice(from->fd, NULL, from->pipe->in, NULL, PIPE, SPLICE_F_NONBLOCK);
    if (n > 0) {
        from->waiting = (unsigned)n;
        from->moved += (uint64_t)n;
    }
    return outcome_of(n);
}

static enum outcome by_copy(struct end *from, struct end *to, bool hangup)
{
    ssize_t n = recv(from->fd, buffer, sizeof buffer, 0);
    if (n <= 0)
        return outcome_of(n);
    ssize_t sent = send(to->fd, buffer, (size_t)n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        return BROKEN;
    if (sent < 0)
        sent = 0;
    from->moved += (uint64_t)n;
    if (sent < n) { /* an empty pipe keeps the rest: it is no smaller than the buffer */
        from->pipe = borrow_pipe();
        from->waiting = (unsigned)(n - sent);
        if (write(from->pipe->in, buffer + sent, from->waiting) != (ssize_t)from->waiting)
            die("relay: a pipe of less than 64 KiB");
    }
    /* A short read has emptied the socket: more brings another edge, unless the end has come. */
    return n < (ssize_t)sizeof buffer && !hangup && !from->waiting ? BLOCKED : MOVED;
}

static void take_another_turn(struct tunnel *t, int which)
{
    if (again_size == again_room) {
        again_room = again_room ? 2 * again_room : 64;
        again = realloc(again, (size_t)again_room * sizeof *again);
    }
    t->ends[which].again = true;
    again[again_size++] = handle(t, which);
}

/* Moves what it can from one end to the other: at most CHUNKS reads, then it's the others' turn. */
static void pump(struct tunnel *t, int which, bool hangup)
{
    struct end *from = &t->ends[which], *to = &t->ends[!which];
    enum outcome outcome = MOVED;
    for (int i = 0; i < CHUNKS && outcome == MOVED; i++) {
        while (from->waiting && outcome == MOVED)
            outcome = drain(from, to);
        if (outcome == MOVED && from->ended)
            outcome = FINISHED;
        if (outcome == MOVED)
            outcome = from->moved < SPLICE_FROM ? by_copy(from, to, hangup) : by_splice(from);
        if (outcome == MOVED && from->waiting)
            outcome = drain(from, to);
    }
    if (from->pipe && !from->waiting)
        return_pipe(from);
    if (outcome == FINISHED && !from->ended) {
        from->ended = true;
        shutdown(to->fd, SHUT_WR);
    }
    if (outcome == BROKEN || (from->ended && to->ended))
        end_tunnel(t);
    else if (outcome == MOVED && !from->again)
        take_another_turn(t, which);
}

static void dial(int client)
{
    int fd = tcp_socket();
    if (connect(fd, (struct sockaddr *)&origin, sizeof origin) && errno != EINPROGRESS)
        die("relay: connect: %s", strerror(errno));
    struct tunnel *t = unused;
    if (t)
        unused = t->next;
    else
        t = malloc(sizeof *t);
    *t = (struct tunnel){.ends = {{.fd = client}, {.fd = fd}}, .state = CONNECTING};
    watch(epoll, fd, EVENTS, (void *)handle(t, 1));
}

static void open_tunnel(struct tunnel *t, uint32_t events)
{
    const ssize_t size = sizeof ESTABLISHED - 1;
    t->state = OPEN;
    if (events & EPOLLERR || send(t->ends[0].fd, ESTABLISHED, size, MSG_NOSIGNAL) != size)
        end_tunnel(t);
    else /* only now, so that whatever the client has sent already brings an edge */
        watch(epoll, t->ends[0].fd, EVENTS, (void *)handle(t, 0));
}

static void decide(int client)
{
    ssize_t n = recv(client, buffer, sizeof buffer - 1, 0);
    buffer[n > 0 ? n : 0] = 0;
    char *end = strchrnul(buffer, '\r');
    size_t size = strlen(host_port);
    bool whole = n > 4 && !memcmp(buffer + n - 4, "\r\n\r\n", 4);
    bool connect = whole && !strncmp(buffer, "CONNECT ", 8);
    if (connect && !strncmp(buffer + 8, host_port, size) && buffer[8 + size] == ' ') {
        dial(client);
        return;
    }
    if (n > 0) {
        send(client, DENIED, sizeof DENIED - 1, MSG_NOSIGNAL);
        int shown = end - buffer < 256 ? (int)(end - buffer) : 256;
        record("\"event\":\"DENIED\",\"request\":\"%.*s\",\"status\":403}\n", shown, buffer);
    }
    close(client);
}

static void accept_all(void)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
        decide(fd);
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("relay: accept: %s", strerror(errno));
}

static void on_event(struct tunnel *t, int which, uint32_t events)
{
    const uint32_t hangup = EPOLLRDHUP | EPOLLHUP | EPOLLERR;
    if (t->state == CONNECTING)
        open_tunnel(t, events);
    if (t->state == OPEN && events & EPOLLOUT && t->ends[!which].waiting)
        pump(t, !which, true); /* its edges may have come and gone while it could not go on */
    if (t->state == OPEN && events & (EPOLLIN | hangup) && !t->ends[which].ended)
        pump(t, which, events & hangup);
}

static void take_turns(void)
{
    int size = again_size;
    if (!size)
        return;
    for (int i = 0; i < size; i++) {
        struct tunnel *t = tunnel_of(again[i]);
        int which = again[i] & 1;
        t->ends[which].again = false;
        if (t->state == OPEN)
            pump(t, which, true);
    }
    again_size -= size;
    memmove(again, again + size, (size_t)again_size * sizeof *again);
}

int main(int argc, char **argv)
{
    if (argc != 5)
        die("usage: relay PORT HOST ORIGIN_PORT LOG");
    die_with_parent();
    signal(SIGPIPE, SIG_IGN); /* splice into a closed socket */
    snprintf(host_port, sizeof host_port, "%s:%s", argv[2], argv[3]);
    origin = loopback(1, (unsigned)atoi(argv[3]));
    log_fd = open(argv[4], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    listener = listen_on((unsigned)atoi(argv[1]));
    int seconds = 5;
    setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll, listener, EPOLLIN, NULL);
    struct epoll_event events[BATCH];
    for (;;) {
        int n = epoll_wait(epoll, events, BATCH, again_size ? 0 : -1);
        for (int i = 0; i < n; i++) {
            uintptr_t what = (uintptr_t)events[i].data.ptr;
            if (what)
                on_event(tunnel_of(what), what & 1, events[i].events);
            else
                accept_all();
        }
        take_turns();
        bury();
        flush_log();
    }
}
