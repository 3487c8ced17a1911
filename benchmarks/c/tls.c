/* The load generator of real TLS 1.3: COUNT tunnels, OPEN of them at once, each with a full handshake.
 *
 *   tls PROXY_PORT HOST PORT COUNT OPEN SECONDS VIA AUTHORITY
 *
 * connect, CONNECT, 200, handshake (a new session each time; the certificate is checked against the
 * file AUTHORITY, and so is its name), a GET, the answer to its end, close. VIA and the line of JSON
 * at the end are those of load.c.
 */
#define _GNU_SOURCE
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "bench.h"
#include "pace.h"

enum { MAX_OPEN = 1024, BATCH = 256, SOURCES = 16 };

static struct conn {
    enum { ASK, HEAD, SHAKE, REQUEST, ANSWER } step;
    int fd;
    SSL *ssl;
    unsigned got; /* bytes in `buffer` */
    char buffer[2048];
} conns[MAX_OPEN], *spare[MAX_OPEN]; /* spare: a stack of the slots that are free */

static SSL_CTX *context;
static unsigned spares, proxy_port, started, finished, count, open_at_once, errors;
static bool by_connect;
static const char *host;
static char connect_request[512], get_request[512], first_error[160];
static int epoll;

static bool end(struct conn *c, const char *error)
{
    if (error && !errors++)
        snprintf(first_error, sizeof first_error, "%s", error);
    SSL_free(c->ssl);
    close(c->fd);
    spare[spares++] = c;
    finished++;
    return false;
}

/* What a call of OpenSSL came to: go on (true), or wait for the next edge or fail (false). */
static bool done(struct conn *c, int result)
{
    if (result > 0)
        return true;
    int why = SSL_get_error(c->ssl, result);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
        return false;
    const char *said = ERR_reason_error_string(ERR_peek_error());
    end(c, said ? said : "the connection broke off within TLS");
    ERR_clear_error();
    return false;
}

static bool ask(struct conn *c)
{
    size_t size = strlen(connect_request);
    ssize_t n = send(c->fd, connect_request, size, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN)
        return false; /* not connected yet */
    if (n != (ssize_t)size)
        return end(c, n < 0 ? strerror(errno) : "short write");
    c->step = HEAD;
    return true;
}

static bool read_head(struct conn *c)
{
    ssize_t n = recv(c->fd, c->buffer + c->got, sizeof c->buffer - 1 - c->got, 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? false : end(c, n ? strerror(errno) : "closed early");
    c->got += (unsigned)n;
    c->buffer[c->got] = 0;
    if (!strstr(c->buffer, "\r\n\r\n"))
        return c->got < sizeof c->buffer - 1 || end(c, "a head of more than 2 KiB");
    if (c->got < 12 || memcmp(c->buffer + 8, " 200 ", 5))
        return end(c, "a status other than 200");
    c->got = 0;
    c->step = SHAKE;
    return true;
}

static bool shake(struct conn *c)
{
    if (!done(c, SSL_connect(c->ssl)))
        return false;
    c->step = REQUEST;
    return true;
}

static bool request(struct conn *c)
{
    if (!done(c, SSL_write(c->ssl, get_request, (int)strlen(get_request))))
        return false;
    c->step = ANSWER;
    return true;
}

static bool answer(struct conn *c)
{
    int n = SSL_read(c->ssl, c->buffer + c->got, (int)(sizeof c->buffer - 1 - c->got));
    if (n <= 0 && SSL_get_error(c->ssl, n) == SSL_ERROR_ZERO_RETURN) {
        c->buffer[c->got] = 0;
        bool whole = strstr(c->buffer, " 200 ") && strstr(c->buffer, "\r\n\r\nhello\n");
        return end(c, whole ? NULL : "not the origin's answer");
    }
    if (!done(c, n))
        return false;
    c->got += (unsigned)n;
    return c->got < sizeof c->buffer - 1 || end(c, "an answer of more than 2 KiB");
}

static bool (*const steps[])(struct conn *) = {
    [ASK] = ask, [HEAD] = read_head, [SHAKE] = shake, [REQUEST] = request, [ANSWER] = answer};

static void start(void)
{
    struct conn *c = spare[--spares];
    int on = 1;
    /* Many source addresses, so that ports in TIME_WAIT don't run out. */
    struct sockaddr_in from = loopback(2 + started++ % SOURCES, 0), to = loopback(1, proxy_port);
    c->step = by_connect ? ASK : SHAKE;
    c->got = 0;
    c->fd = tcp_socket();
    c->ssl = SSL_new(context);
    if (!c->ssl || !SSL_set_fd(c->ssl, c->fd) || !SSL_set1_host(c->ssl, host) ||
        !SSL_set_tlsext_host_name(c->ssl, host))
        die("tls: out of memory");
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from))
        die("tls: bind: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
        end(c, strerror(errno));
    else
        watch(epoll, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, c);
}

static void run(double deadline)
{
    struct epoll_event events[BATCH];
    while (finished < count) {
        while (spares > MAX_OPEN - open_at_once && started < count)
            start();
        double left = deadline - now();
        if (left <= 0)
            return;
        int n = epoll_wait(epoll, events, BATCH, (int)(left * 1000) + 1);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            while (steps[c->step](c))
                ;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 9)
        die("usage: tls PROXY_PORT HOST PORT COUNT OPEN SECONDS VIA AUTHORITY");
    die_with_parent();
    signal(SIGPIPE, SIG_IGN);
    proxy_port = (unsigned)atoi(argv[1]);
    host = argv[2];
    count = (unsigned)atoi(argv[4]);
    open_at_once = (unsigned)atoi(argv[5]);
    by_connect = !strcmp(argv[7], "connect");
    if (!open_at_once || open_at_once > MAX_OPEN || strlen(host) > 128)
        die("tls: not 1 to %d connections, or a host's name that is too long", MAX_OPEN);
    const char *form = "CONNECT %s:%s HTTP/1.1\r\nHost: %s:%s\r\nUser-Agent: load\r\n\r\n";
    sprintf(connect_request, form, host, argv[3], host, argv[3]);
    sprintf(get_request, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host);

    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_load_verify_locations(context, argv[8], NULL))
        die("tls: cannot read %s", argv[8]);
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    while (spares < MAX_OPEN) {
        spare[spares] = &conns[spares];
        spares++;
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);

    double begin = now();
    run(begin + atof(argv[6]));
    double seconds = now() - begin;
    if (finished < count) {
        errors += count - finished;
        if (!*first_error)
            snprintf(first_error, sizeof first_error, "not done in %s s", argv[6]);
    }
    printf("{\"finished\": %u, \"errors\": %u, \"first_error\": \"%s\", \"seconds\": %.6f}\n",
        finished, errors, first_error, seconds);
    return errors ? 1 : 0;
}
