/* Holds many WebSocket connections from one thread, and counts and times what arrives, cheaply. Compiled by native.py.
 *
 *   load --port P --n N [--inflight K] [--path /ws] [--deflate] [--slow S] [--sub TEXT | --subs FILE]
 *        [--secs T] [--nopong] [--nap MS] [--burst K]
 *
 * Talks to 127.0.0.1 only. The upgrade is done by hand; frames are parsed without copying when they arrive whole. A text
 * whose first `"volume":` is followed by 16 digits is timed: they are the CLOCK_MONOTONIC nanoseconds at which it was made,
 * modulo 10^15, plus 10^15; the last two digits say which server or variant made it. Anything else is only counted. Pings are answered.
 * Ends on SIGTERM, when the server has closed every connection, or after --secs.
 * --sub TEXT is sent by every connection after its upgrade, --subs a line of FILE each in turn; with --burst K it is
 * sent K times by each instead, once all are open. The first text after it is timed as the answer.
 * --slow S: the first S connections are opened and then never read again (small SO_RCVBUF).
 * --nap MS: once all are open, look at the sockets only every MS ms. The client then seldom runs while the server sends,
 * so that the server's processor time is free of wake-ups and of lock contention (delays mean nothing in this mode).
 * Prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EPOCH 1000000000000000ull
#define MAXV 100
#define MAXR 2048
#define PFX 512
enum { CONNECTING, UPGRADING, OPEN, SLOW, CLOSED };

struct conn {
    int fd;
    uint8_t state, hdr_len, pfx_len, in_payload;
    uint8_t hdr[16];
    uint64_t remain, plen;
    uint8_t pfx[PFX];
    uint16_t hs_len;
    uint64_t asked;
    char *hs;
};
struct cell { uint32_t n; uint64_t sum, max, min; };

static struct cell cells[MAXV][MAXR];
/* delay histogram in ns: log2 major, 32 minor */
static uint64_t hist[MAXV][64 * 32];
static uint64_t n_text, n_bin, n_ping, n_close, n_rsv1, n_other, bytes_in, n_timed;
static uint64_t answers[64 * 32], n_answers;
static int n_conn, opened, closed, failed, nopong;
static volatile sig_atomic_t stopped;
static void stop(int signal) { (void)signal; stopped = 1; }
static struct conn *conns;
static int ep;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}
static int bucket(uint64_t v) {
    if (v < 32) return (int)v;
    int m = 63 - __builtin_clzll(v);
    return (m - 4) * 32 + (int)((v >> (m - 5)) & 31);
}
static uint64_t bucket_low(int b) {
    if (b < 32) return b;
    int m = b / 32 + 4;
    return (1ull << m) | ((uint64_t)(b & 31) << (m - 5));
}
static uint64_t dec(const uint8_t *p, int n) {
    uint64_t v = 0;
    while (n--) v = v * 10 + (*p++ - '0');
    return v;
}
static uint64_t known[MAXV][MAXR]; /* when each round of a variant was made */
static int n_known[MAXV];
static void timed(const uint8_t *p, int len, uint64_t t) {
    static const char key[] = "\"volume\":";
    const uint8_t *q = memmem(p, len, key, sizeof key - 1);
    if (!q || q + sizeof key - 1 + 16 > p + len) return;
    q += sizeof key - 1;
    for (int i = 0; i < 16; i++) if (q[i] < '0' || q[i] > '9') return;
    uint64_t t0 = dec(q, 16), now = t % EPOCH + EPOCH, d = now > t0 ? now - t0 : 0;
    int v = (int)(t0 % 100), r = n_known[v] - 1;
    while (r >= 0 && known[v][r] != t0) r--;
    if (r < 0) {
        if (n_known[v] == MAXR) return;
        r = n_known[v]++;
        known[v][r] = t0;
    }
    struct cell *c = &cells[v][r];
    if (!c->n || d < c->min) c->min = d;
    if (d > c->max) c->max = d;
    c->sum += d;
    c->n++;
    hist[v][bucket(d)]++;
    n_timed++;
}
static void send_masked(struct conn *c, int op, const uint8_t *data, int len) {
    uint8_t b[256 + 8];
    if (len > 125) {
        /* a subscribe message may be longer */
        uint8_t *q = malloc(len + 16);
        q[0] = 0x80 | op; q[1] = 0x80 | 126; q[2] = len >> 8; q[3] = len; memset(q + 4, 0, 4);
        memcpy(q + 8, data, len);
        (void)!send(c->fd, q, len + 8, MSG_DONTWAIT | MSG_NOSIGNAL);
        free(q);
        return;
    }
    b[0] = 0x80 | op; b[1] = 0x80 | len; memset(b + 2, 0, 4);
    memcpy(b + 6, data, len);
    (void)!send(c->fd, b, len + 6, MSG_DONTWAIT | MSG_NOSIGNAL);
}
static void ask(struct conn *c, const char *text) {
    c->asked = now_ns();
    send_masked(c, 1, (const uint8_t *)text, (int)strlen(text));
}
static void drop(struct conn *c) {
    if (c->state == CLOSED) return;
    if (c->state == CONNECTING || c->state == UPGRADING) failed++;
    c->state = CLOSED;
    close(c->fd);
    closed++;
}
static void frame_done(struct conn *c, uint8_t b0, const uint8_t *p, int plen_seen, uint64_t t) {
    int op = b0 & 15;
    if (op == 1 || op == 0) {
        n_text++;
        if (c->asked) { answers[bucket(t - c->asked)]++; n_answers++; c->asked = 0; }
        if (b0 & 0x40) n_rsv1++;
        else timed(p, plen_seen, t);
    } else if (op == 2) n_bin++;
    else if (op == 9) { n_ping++; if (!nopong) send_masked(c, 10, p, plen_seen > 125 ? 125 : plen_seen); }
    else if (op == 8) n_close++;
    else n_other++;
}
static void feed(struct conn *c, const uint8_t *p, size_t n, uint64_t t) {
    while (n) {
        if (!c->in_payload) {
            /* fast path: a whole small frame is here */
            if (!c->hdr_len && n >= 2) {
                uint64_t l = p[1] & 127; int h = 2;
                if (l == 126 && n >= 4) { l = (uint64_t)p[2] << 8 | p[3]; h = 4; }
                else if (l >= 126) h = 0;
                if (h && n >= h + l) { frame_done(c, p[0], p + h, (int)l, t); p += h + l; n -= h + l; continue; }
            }
            c->hdr[c->hdr_len++] = *p++; n--;
            if (c->hdr_len < 2) continue;
            int l7 = c->hdr[1] & 127, need = l7 == 126 ? 4 : l7 == 127 ? 10 : 2;
            if (c->hdr_len < need) continue;
            uint64_t l = l7;
            if (l7 >= 126) { l = 0; for (int i = 2; i < need; i++) l = l << 8 | c->hdr[i]; }
            c->remain = c->plen = l; c->pfx_len = 0; c->in_payload = 1;
        }
        size_t k = n < c->remain ? n : c->remain;
        int w = PFX - c->pfx_len; if ((size_t)w > k) w = (int)k;
        memcpy(c->pfx + c->pfx_len, p, w); c->pfx_len += w;
        p += k; n -= k; c->remain -= k;
        if (!c->remain) {
            frame_done(c, c->hdr[0], c->pfx, c->pfx_len, t);
            c->in_payload = 0; c->hdr_len = 0;
        }
    }
    if (c->in_payload && !c->remain) { frame_done(c, c->hdr[0], c->pfx, c->pfx_len, t); c->in_payload = 0; c->hdr_len = 0; }
}
static int cmp64(const void *a, const void *b) {
    uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    int port = 0, inflight = 64, deflate = 0, slow = 0, nap = 0, burst = 0, burst_done = 0;
    double secs = 600;
    const char *path = "/ws";
    char *one_sub[1], **subs = NULL;
    int n_subs = 0;
    signal(SIGTERM, stop);
    n_conn = 100;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--port")) port = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--n")) n_conn = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--inflight")) inflight = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--path")) path = argv[++i];
        else if (!strcmp(argv[i], "--deflate")) deflate = 1;
        else if (!strcmp(argv[i], "--nopong")) nopong = 1;
        else if (!strcmp(argv[i], "--burst")) burst = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--nap")) nap = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--slow")) slow = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--sub")) { one_sub[0] = argv[++i]; subs = one_sub; n_subs = 1; }
        else if (!strcmp(argv[i], "--subs")) {
            FILE *f = fopen(argv[++i], "r");
            char *line = NULL; size_t room = 0; ssize_t k;
            if (!f) { perror("--subs"); return 1; }
            while ((k = getline(&line, &room, f)) > 0) {
                if (line[k - 1] == '\n') line[k - 1] = 0;
                subs = realloc(subs, (n_subs + 1) * sizeof *subs);
                subs[n_subs++] = strdup(line);
            }
            fclose(f);
        }
        else if (!strcmp(argv[i], "--secs")) secs = atof(argv[++i]);
        else { fprintf(stderr, "what is %s\n", argv[i]); return 2; }
    }
    struct rlimit rl; getrlimit(RLIMIT_NOFILE, &rl); rl.rlim_cur = rl.rlim_max; setrlimit(RLIMIT_NOFILE, &rl);
    conns = calloc(n_conn, sizeof *conns);
    ep = epoll_create1(0);
    char req[1024];
    int reqlen = snprintf(req, sizeof req,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n", path, port,
        deflate ? "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" : "");
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    static uint8_t buf[1 << 18];
    struct epoll_event ev[1024];
    int started = 0;
    uint64_t t_start = now_ns(), t_open = 0, t_end = t_start + (uint64_t)(secs * 1e9), cpu_open = 0;
    while (1) {
        while (started < n_conn && started - opened - failed < inflight) {
            struct conn *c = &conns[started];
            c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            if (c->fd < 0) { perror("socket"); return 1; }
            int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            struct linger lg = {1, 0}; setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &lg, sizeof lg);
            if (started < slow) { int rb = 4096; setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &rb, sizeof rb); }
            if (connect(c->fd, (struct sockaddr *)&a, sizeof a) && errno != EINPROGRESS) { perror("connect"); return 1; }
            c->state = CONNECTING; c->hs = malloc(1024);
            struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
            epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
            started++;
        }
        uint64_t t = now_ns();
        if (t > t_end || stopped) break;
        if (closed >= n_conn) break;
        if (burst && !burst_done && opened + failed == n_conn) {
            /* every connection sends --sub that many times, one at a time, round-robin */
            burst_done = 1;
            usleep(700000);
            for (int k = 0; k < burst; k++) {
                usleep(90000);
                for (int i = 0; i < n_conn; i++)
                    if (conns[i].state == OPEN) ask(&conns[i], subs[i % n_subs]);
            }
        }
        int n;
        if (nap && opened + failed == n_conn) {
            n = epoll_wait(ep, ev, 1024, 0);
            if (!n) { usleep(nap * 1000); continue; }
        } else n = epoll_wait(ep, ev, 1024, 200);
        for (int i = 0; i < n; i++) {
            struct conn *c = ev[i].data.ptr;
            if (c->state == CLOSED) continue;
            if (c->state == CONNECTING) {
                int err = 0; socklen_t el = sizeof err;
                getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &el);
                if (err) { fprintf(stderr, "connect: %s\n", strerror(err)); drop(c); continue; }
                if (send(c->fd, req, reqlen, MSG_NOSIGNAL) != reqlen) { perror("send"); drop(c); continue; }
                c->state = UPGRADING;
                struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
                epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
                continue;
            }
            if (c->state == UPGRADING) {
                ssize_t k = recv(c->fd, c->hs + c->hs_len, 1023 - c->hs_len, 0);
                if (k <= 0) { if (k < 0 && errno == EAGAIN) continue; drop(c); continue; }
                c->hs_len += k; c->hs[c->hs_len] = 0;
                char *e = memmem(c->hs, c->hs_len, "\r\n\r\n", 4);
                if (!e) { if (c->hs_len >= 1023) drop(c); continue; }
                if (!memmem(c->hs, 16, " 101 ", 5)) { fprintf(stderr, "refused: %.60s\n", c->hs); drop(c); continue; }
                c->state = OPEN; opened++;
                e += 4;
                int idx = (int)(c - conns);
                if (n_subs && !burst) ask(c, subs[idx % n_subs]);
                if (idx < slow) { c->state = SLOW; epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL); }
                else if (e < c->hs + c->hs_len) feed(c, (uint8_t *)e, c->hs + c->hs_len - e, now_ns());
                free(c->hs); c->hs = NULL;
                if (opened + failed == n_conn) {
                    t_open = now_ns();
                    struct rusage ru; getrusage(RUSAGE_SELF, &ru);
                    cpu_open = ru.ru_utime.tv_sec * 1000000ull + ru.ru_utime.tv_usec + ru.ru_stime.tv_sec * 1000000ull + ru.ru_stime.tv_usec;
                    fprintf(stderr, "open %d in %.3f s = %.0f/s\n", opened, (t_open - t_start) / 1e9, opened / ((t_open - t_start) / 1e9));
                }
                continue;
            }
            ssize_t k = recv(c->fd, buf, sizeof buf, 0);
            if (k <= 0) { if (k < 0 && errno == EAGAIN) continue; drop(c); continue; }
            bytes_in += k;
            feed(c, buf, k, now_ns());
        }
        if (opened == n_conn && slow && closed >= n_conn - slow) break;
    }
    struct rusage ru; getrusage(RUSAGE_SELF, &ru);
    uint64_t cpu = ru.ru_utime.tv_sec * 1000000ull + ru.ru_utime.tv_usec + ru.ru_stime.tv_sec * 1000000ull + ru.ru_stime.tv_usec;
    printf("{\"opened\":%d,\"failed\":%d,\"closed\":%d,\"open_s\":%.4f,\"text\":%lu,\"rsv1\":%lu,\"bin\":%lu,\"ping\":%lu,\"close\":%lu,\"bytes\":%lu,"
           "\"client_cpu_us_per_frame\":%.3f,\"v\":{", opened, failed, closed, t_open ? (t_open - t_start) / 1e9 : -1.0, n_text, n_rsv1, n_bin, n_ping, n_close, bytes_in,
           n_text ? (double)(cpu - cpu_open) / n_text : 0.0);
    int first = 1;
    static uint64_t last[MAXR], firstd[MAXR];
    for (int v = 0; v < MAXV; v++) {
        int k = 0, full = 0; uint64_t tot = 0, sum = 0;
        for (int r = 0; r < MAXR; r++) if (cells[v][r].n) {
            firstd[k] = cells[v][r].min; last[k++] = cells[v][r].max; tot += cells[v][r].n; sum += cells[v][r].sum;
            if ((int)cells[v][r].n >= n_conn - slow) full++;
        }
        if (!k) continue;
        qsort(last, k, 8, cmp64); qsort(firstd, k, 8, cmp64);
        uint64_t acc = 0, p50 = 0, p99 = 0;
        for (int b = 0; b < 64 * 32; b++) {
            acc += hist[v][b];
            if (!p50 && acc * 2 >= tot) p50 = bucket_low(b);
            if (!p99 && acc * 100 >= tot * 99) { p99 = bucket_low(b); break; }
        }
        printf("%s\"%d\":{\"rounds\":%d,\"full\":%d,\"n\":%lu,\"first_p50_us\":%.1f,\"last_p50_us\":%.1f,\"last_p90_us\":%.1f,\"last_p99_us\":%.1f,\"mean_us\":%.1f,\"all_p50_us\":%.1f,\"all_p99_us\":%.1f}",
               first ? "" : ",", v, k, full, tot, firstd[k / 2] / 1e3, last[k / 2] / 1e3, last[k * 9 / 10] / 1e3, last[(k * 99) / 100 >= k ? k - 1 : (k * 99) / 100] / 1e3,
               (double)sum / tot / 1e3, p50 / 1e3, p99 / 1e3);
        first = 0;
    }
    uint64_t at = 0, half = 0, most = 0;
    for (int b = 0; b < 64 * 32 && n_answers; b++) {
        at += answers[b];
        if (!half && at * 2 >= n_answers) half = bucket_low(b);
        if (at * 100 >= n_answers * 99) { most = bucket_low(b); break; }
    }
    printf("},\"answers\":%lu,\"answer_p50_us\":%.1f,\"answer_p99_us\":%.1f}\n", n_answers, half / 1e3, most / 1e3);
    fflush(stdout);
    _exit(0);
}
