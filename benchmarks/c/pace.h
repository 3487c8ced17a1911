/* Arrivals at a rate, and how long each took.
 *
 * The gaps are random (exponential, from a fixed seed), as those of many clients who know nothing of
 * each other are, so a proxy at half load has short queues, as it would have in a cluster. Time
 * counts from when an arrival was due and not from when it was let in: a proxy that stalls delays
 * those behind too, and a load generator that waited for it would hide that.
 */
#ifndef PACE_H
#define PACE_H

#include <math.h>
#include <sys/prctl.h>
#include <time.h>

#include "bench.h"

struct pace {
    double rate; /* a second; 0: no pace */
    double due;  /* when the next one is to start */
    double *took;
    unsigned taken, room;
};

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline void pace_start(struct pace *p, double rate, unsigned count, double time)
{
    *p = (struct pace){.rate = rate, .due = time, .room = count};
    if (rate <= 0)
        return;
    p->took = calloc(count, sizeof *p->took);
    srand48(1);
    prctl(PR_SET_TIMERSLACK, 1000); /* ns: sleeps would else end 50 µs late */
}

static inline bool pace_is_due(const struct pace *p, double time)
{
    return p->rate <= 0 || time >= p->due;
}

/* When the arrival that starts now was due. */
static inline double pace_next(struct pace *p)
{
    double due = p->due;
    p->due += -log(1 - drand48()) / p->rate;
    return due;
}

static inline void pace_took(struct pace *p, double due)
{
    if (p->taken < p->room)
        p->took[p->taken++] = now() - due;
}

static inline int pace_order(const void *a, const void *b)
{
    double one = *(const double *)a, two = *(const double *)b;
    return (one > two) - (one < two);
}

/* In seconds, of what has finished; 0 if that is nothing. */
static inline double pace_percentile(struct pace *p, unsigned percent)
{
    if (!p->taken)
        return 0;
    qsort(p->took, p->taken, sizeof *p->took, pace_order);
    return p->took[(uint64_t)(p->taken - 1) * percent / 100];
}

#endif
