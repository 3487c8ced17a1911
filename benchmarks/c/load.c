/* The load generator: COUNT tunnels, denials or requests through a proxy, OPEN of them at once.
 *
 *   load MODE PROXY_PORT HOST PORT COUNT OPEN BYTES SECONDS RATE VIA
 *
 *   tunnel  connect, CONNECT, 200, one frame there and back, close
 *   deny    connect, CONNECT, 403 with its body, close
 *   down    as tunnel, and BYTES from the origin
 *   up      as tunnel, and BYTES to the origin
 *   idle    as tunnel, but all stay open: prints `open`, closes them when its standard input ends
 *   get     GET with an absolute URL on OPEN connections that are kept alive
 *
 * RATE 0 starts the next as soon as one of OPEN has ended. Another starts RATE a second, come what
 * may, and times each; pace.h says how. VIA `connect` speaks CONNECT; `relay` speaks to whatever
 * listens there as to the origin, which it may be.
 *
 * It ends with one line of JSON. Whatever goes wrong is counted, and whatever isn't done after
 * SECONDS is an error too.
 */
#define _GNU_SOURCE
#include "bench.h"
#include "hello.h"
#include "pace.h"

enum { MAX_OPEN = 16384, BATCH = 256, CHUNK = 1024 * 1024, SOURCES = 16 };

#define UNTIL_THE_END UINT64_MAX /* the length of a body that has no Content-Length */

static enum { TUNNEL, DENY, DOWN, UP, IDLE, GET } mode;
static const char *const MODES[] = {"tunnel", "deny", "down", "up", "idle", "get"};

static struct conn {
    enum { ASK, HEAD, BODY, PING, PONG, RECEIVE, SEND, HOLD } step;
    int fd;
    unsigned got; /* bytes in `buffer` */
    uint64_t left;
    double due; /* when it was to start, if there is a rate */
    char buffer[4096];
} *conns, *spare[MAX_OPEN]; /* spare: a stack of the slots that are free */

static unsigned spares, proxy_port, started, finished, busy, count, open_at_once, errors;
static uint64_t bytes;
static bool by_connect;
static struct pace pace;
static unsigned char frame[FRAME];
static char request[512], chunk[CHUNK], first_error[160];
static size_t request_size;
static int epoll;

static void release(struct conn *c)
{
    close(c->fd);
    spare[spares++] = c;
    busy -= c->step != HOLD;
}

static bool fail(struct conn *c, const char *what)
{
    if (!errors++)
        snprintf(first_error, sizeof first_error, "%s", what);
    finished += c->step != HOLD;
    release(c);
    return false;
}

/* The steps below do one thing each and say whether to go on at once (true) or to wait for the next
 * edge (false). */

static bool finish(struct conn *c)
{
    if (pace.rate > 0)
        pace_took(&pace, c->due);
    finished++;
    if (mode == IDLE) { /* no longer busy, and not to be counted again */
        busy--;
        c->step = HOLD;
        return true;
    }
    if (mode == GET && started < count) { /* the next request on the same connection */
        started++;
        c->step = ASK;
        c->got = 0;
        return true;
    }
    release(c);
    return false;
}

/* Requests and frames are small and the socket is empty: a short write would be a defect. */
static bool say(struct conn *c, const void *what, size_t size, int next)
{
    ssize_t n = send(c->fd, what, size, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN)
        return false; /* not connected yet */
    if (n != (ssize_t)size)
        return fail(c, n < 0 ? strerror(errno) : "short write");
    c->step = next;
    return true;
}

/* What came, or 0: then there is nothing yet, or the connection has failed and is gone. */
static size_t hear(struct conn *c, void *into, size_t size, int flags)
{
    ssize_t n = recv(c->fd, into, size, flags);
    if (n > 0)
        return (size_t)n;
    if (n == 0 && c->step == BODY && c->left == UNTIL_THE_END)
        finish(c);
    else if (n == 0)
        fail(c, "closed early");
    else if (errno != EAGAIN)
        fail(c, strerror(errno));
    return 0;
}

static bool read_head(struct conn *c)
{
    size_t n = hear(c, c->buffer + c->got, sizeof c->buffer - 1 - c->got, 0);
    if (!n)
        return false;
    c->got += (unsigned)n;
    c->buffer[c->got] = 0;
    char *end = strstr(c->buffer, "\r\n\r\n");
    if (!end)
        return c->got < sizeof c->buffer - 1 || fail(c, "a head of more than 4 KiB");
    const char *status = mode == DENY ? " 403 " : " 200 ";
    if (c->got < 12 || memcmp(c->buffer + 8, status, 5)) {
        char what[64];
        snprintf(what, sizeof what, "status:%.8s", c->buffer + 8);
        return fail(c, what);
    }
    unsigned beyond = c->got - (unsigned)(end + 4 - c->buffer);
    c->got = 0;
    if (mode != DENY && mode != GET) {
        c->step = PING;
        return !beyond || fail(c, "bytes after the 200");
    }
    *end = 0;
    const char *length = strcasestr(c->buffer, "\r\nContent-Length:");
    c->left = length ? strtoull(length + 17, NULL, 10) : UNTIL_THE_END;
    if (beyond > c->left)
        return fail(c, "more bytes than Content-Length");
    c->left -= length ? beyond : 0;
    c->step = BODY;
    return true;
}

static bool read_body(struct conn *c)
{
    if (!c->left)
        return finish(c);
    size_t n = hear(c, chunk, c->left < CHUNK ? c->left : CHUNK, 0);
    if (n && c->left != UNTIL_THE_END)
        c->left -= n;
    return n > 0;
}

static bool read_pong(struct conn *c)
{
    size_t n = hear(c, c->buffer + c->got, FRAME - c->got, 0);
    if (!n)
        return false;
    c->got += (unsigned)n;
    if (c->got < FRAME)
        return true;
    if (memcmp(c->buffer, frame, FRAME))
        return fail(c, "the frame came back changed");
    if (mode == UP && c->left) {
        c->got = 0;
        c->step = SEND;
        return true;
    }
    return finish(c);
}

static bool after_ping(struct conn *c)
{
    if (!say(c, frame, FRAME, mode == DOWN ? RECEIVE : PONG))
        return false;
    c->left = bytes;
    return true;
}

static bool receive(struct conn *c)
{
    if (!c->left)
        return finish(c);
    /* MSG_TRUNC drops the bytes in the kernel: the copy would only slow the load down. */
    size_t n = hear(c, chunk, c->left < CHUNK ? c->left : CHUNK, MSG_TRUNC);
    c->left -= n;
    return n > 0;
}

static bool send_bytes(struct conn *c)
{
    if (!c->left) {
        c->step = PONG;
        return true;
    }
    ssize_t n = send(c->fd, chunk, c->left < CHUNK ? c->left : CHUNK, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN ? false : fail(c, strerror(errno));
    c->left -= (uint64_t)n;
    return true;
}

static bool held(struct conn *c)
{
    return hear(c, c->buffer, 1, 0) && fail(c, "bytes on an idle tunnel");
}

static bool step(struct conn *c)
{
    switch (c->step) {
    case ASK: return say(c, request, request_size, HEAD);
    case HEAD: return read_head(c);
    case BODY: return read_body(c);
    case PING: return after_ping(c);
    case PONG: return read_pong(c);
    case RECEIVE: return receive(c);
    case SEND: return send_bytes(c);
    case HOLD: return held(c);
    }
    return false;
}

static void start(void)
{
    struct conn *c = spare[--spares];
    int on = 1;
    /* Many source addresses, so that ports in TIME_WAIT don't run out. */
    struct sockaddr_in from = loopback(2 + started++ % SOURCES, 0), to = loopback(1, proxy_port);
    busy++;
    c->step = by_connect || mode == GET ? ASK : PING;
    c->got = 0;
    if (pace.rate > 0)
        c->due = pace_next(&pace);
    c->fd = tcp_socket();
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from))
        die("load: bind: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        fail(c, strerror(errno));
        return;
    }
    watch(epoll, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, c);
}

static void make_request(const char *host, const char *port)
{
    const char *line = mode == GET ? "GET http://%s:%s/ HTTP/1.1\r\n"
                                   : "CONNECT %s:%s HTTP/1.1\r\n";
    const char *fields = "Host: %s:%s\r\nUser-Agent: load\r\n"
                         "Proxy-Connection: Keep-Alive\r\n\r\n";
    if (strlen(host) > 200)
        die("load: the host's name is too long for a request");
    request_size = (size_t)sprintf(request, line, host, port);
    request_size += (size_t)sprintf(request + request_size, fields, host, port);
}

/* Until all is finished or, when `hold`, the harness has seen enough; not beyond the deadline. */
static void run(double deadline, bool hold)
{
    struct epoll_event events[BATCH];
    while (hold || finished < count) {
        double time = now();
        while (!hold && busy < open_at_once && started < count && pace_is_due(&pace, time))
            start();
        double left = deadline - time;
        if (left <= 0)
            return;
        if (!hold && pace.rate > 0 && started < count && pace.due - time < left)
            left = pace.due > time ? pace.due - time : 0;
        struct timespec wait = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        int n = epoll_pwait2(epoll, events, BATCH, &wait, NULL);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c)
                return;
            while (step(c))
                ;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 11)
        die("usage: load MODE PROXY_PORT HOST PORT COUNT OPEN BYTES SECONDS RATE VIA");
    die_with_parent();
    while (mode <= GET && strcmp(argv[1], MODES[mode]))
        mode++;
    proxy_port = (unsigned)atoi(argv[2]);
    count = (unsigned)atoi(argv[5]);
    open_at_once = (unsigned)atoi(argv[6]);
    bytes = strtoull(argv[7], NULL, 10);
    by_connect = !strcmp(argv[10], "connect");
    unsigned slots = mode == IDLE ? count : open_at_once;
    if (mode > GET || !slots || slots > MAX_OPEN)
        die("load: no such mode, or not 1 to %d connections", MAX_OPEN);
    make_request(argv[3], argv[4]);
    make_frame(frame, argv[3], mode == DOWN ? 'D' : mode == UP ? 'U' : 'E', bytes);
    conns = calloc(slots, sizeof *conns);
    while (spares < slots) {
        spare[spares] = &conns[spares];
        spares++;
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);

    double begin = now(), deadline = begin + atof(argv[8]);
    pace_start(&pace, atof(argv[9]), count, begin);
    run(deadline, false);
    double seconds = now() - begin;
    if (finished < count) {
        errors += count - finished;
        if (!*first_error)
            snprintf(first_error, sizeof first_error, "not done in %s s", argv[8]);
    }
    if (mode == IDLE && !errors) {
        puts("open");
        fflush(stdout);
        watch(epoll, STDIN_FILENO, EPOLLIN, NULL);
        run(deadline, true);
    }
    printf("{\"finished\": %u, \"errors\": %u, \"first_error\": \"%s\", \"seconds\": %.6f, "
           "\"p50\": %.9f, \"p99\": %.9f}\n",
        finished, errors, first_error, seconds, pace_percentile(&pace, 50), pace_percentile(&pace, 99));
    return errors ? 1 : 0;
}
