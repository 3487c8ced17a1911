/* The ClientHello that a tunnel starts with. */
#ifndef HELLO_H
#define HELLO_H

#include "bench.h"

/* One extension, whose content may be shorter than its size: zeros follow. Returns where the next one begins. */
static inline unsigned char *extend(unsigned char *at, unsigned type, size_t size, const void *content, size_t n)
{
    at[0] = (unsigned char)(type >> 8), at[1] = (unsigned char)type;
    at[2] = (unsigned char)(size >> 8), at[3] = (unsigned char)size;
    if (n)
        memcpy(at + 4, content, n);
    return at + 4 + size;
}
#define EXTEND(at, type, size, content) extend(at, type, size, content, sizeof(content) - 1)

/* A ClientHello of exactly one frame, with the sizes and extensions of curl's (OpenSSL 3), that says
 * to the origin what bench.h has. */
static inline void make_frame(unsigned char frame[FRAME], const char *host, char command, uint64_t bytes)
{
    size_t name = strlen(host);
    if (name > 128)
        die("load: the host's name is too long for a frame");
    unsigned char hello[FRAME] = {TLS_HANDSHAKE, 3, 1, (FRAME - 5) >> 8, (FRAME - 5) & 255,
                                  1, 0, (FRAME - 9) >> 8, (FRAME - 9) & 255, 3, 3};
    hello[COMMAND] = (unsigned char)command;
    uint64_t length = htobe64(bytes);
    memcpy(hello + LENGTH, &length, sizeof length);
    hello[43] = 32; /* a session identifier, 31 cipher suites, no compression */
    hello[77] = 62;
    memcpy(hello + 78, "\x13\x02", 2);
    hello[140] = 1;
    size_t extensions = FRAME - 144;
    hello[142] = (unsigned char)(extensions >> 8), hello[143] = (unsigned char)extensions;
    unsigned char names[133] = {0, (unsigned char)(name + 3), 0, 0, (unsigned char)name};
    memcpy(names + 5, host, name);
    unsigned char *at = extend(hello + 144, 0, name + 5, names, name + 5);
    at = EXTEND(at, 11, 4, "\3\0\1\2");                     /* ec_point_formats */
    at = EXTEND(at, 10, 22, "\0\x14\0\x1d");                 /* supported_groups */
    at = EXTEND(at, 16, 14, "\0\x0c\2h2\x8http/1.1");         /* ALPN */
    at = EXTEND(at, 22, 0, "");                              /* encrypt_then_mac */
    at = EXTEND(at, 23, 0, "");                              /* extended_master_secret */
    at = EXTEND(at, 49, 0, "");                              /* post_handshake_auth */
    at = EXTEND(at, 13, 42, "\0\x28\4\3");                   /* signature_algorithms */
    at = EXTEND(at, 43, 9, "\x08\3\4\3\3\3\2\3\1");        /* supported_versions */
    at = EXTEND(at, 45, 2, "\1\1");                          /* psk_key_exchange_modes */
    at = EXTEND(at, 51, 38, "\0\x24\0\x1d\0\x20");          /* key_share */
    EXTEND(at, 21, (size_t)(hello + FRAME - at) - 4, "");    /* padding */
    memcpy(frame, hello, FRAME);
}

#endif
